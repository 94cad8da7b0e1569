// Counts that rules for prose need: words, and n-grams of words that repeat. Text comes as code points.
//
// A word is \w+ with apostrophes between such runs, or a single mark that is no white space: `_TOKEN` of cptron.corpus.words. Two n-grams
// are found to be alike by a hash and then compared character by character, so that no collision decides.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "words.h"

namespace cptron {

// What a code point is, for those rules; beyond the table: nothing of it.
class CharacterKinds {
 public:
  static constexpr uint8_t kWord = 1, kSpace = 2, kPunctuation = 4, kLetter = 8;

  CharacterKinds(const uint8_t* table, size_t size) : table_(table), size_(size) {}
  uint8_t operator()(char32_t character) const { return character < size_ ? table_[character] : 0; }

 private:
  const uint8_t* table_;
  size_t size_;
};

// Calls `on_word(first character, character after the last)` for every word.
template <typename OnWord>
void walk_prose(const CharacterKinds& kinds, std::u32string_view text, OnWord&& on_word) {
  const auto in_word = [&](size_t i) { return i < text.size() && (kinds(text[i]) & CharacterKinds::kWord) != 0; };
  for (size_t at = 0; at < text.size();) {
    const size_t first = at++;
    if (!in_word(first)) {
      if ((kinds(text[first]) & CharacterKinds::kSpace) == 0) on_word(first, at);
      continue;
    }
    while (in_word(at) || (at < text.size() && (text[at] == U'\'' || text[at] == U'\u2019') && in_word(at + 1))) ++at;
    on_word(first, at);
  }
}

struct ProseCounts {
  int64_t words = 0;
  int64_t plain_words = 0;       // with a character that is no punctuation
  int64_t plain_characters = 0;  // of those
  int64_t lettered_words = 0;    // with a letter
  int64_t stop_words = 0;        // of the list, that are there
};

using StopWords = std::unordered_set<std::u32string_view>;

inline ProseCounts count_prose(const CharacterKinds& kinds, std::u32string_view text, const StopWords& stop_words) {
  ProseCounts counts;
  StopWords found;
  walk_prose(kinds, text, [&](size_t first, size_t stop) {
    uint8_t any = 0, all = CharacterKinds::kPunctuation;
    for (size_t i = first; i < stop; ++i) {
      any |= kinds(text[i]);
      all &= kinds(text[i]);
    }
    ++counts.words;
    counts.lettered_words += (any & CharacterKinds::kLetter) != 0;
    if (all == 0) {
      ++counts.plain_words;
      counts.plain_characters += static_cast<int64_t>(stop - first);
    }
    const std::u32string_view word = text.substr(first, stop - first);
    if (found.size() < stop_words.size() && stop_words.count(word) != 0) found.insert(word);
  });
  counts.stop_words = static_cast<int64_t>(found.size());
  return counts;
}

// n-grams of the words of one text; `n` is at least 1 throughout.
class NGrams {
 public:
  NGrams(const CharacterKinds& kinds, std::u32string_view text) {
    walk_prose(kinds, text, [&](size_t first, size_t stop) {
      uint64_t hash = prefixes_.back();
      for (size_t i = first; i < stop; ++i) hash = hash * kBase + text[i] + 1;
      prefixes_.push_back(hash);
      characters_.append(text.substr(first, stop - first));
      ends_.push_back(characters_.size());
    });
    powers_.push_back(1);
  }

  // Characters of the commonest n-gram, with one space between words, times how often it is there; of several such the first one's.
  uint64_t commonest(size_t n) {
    const size_t count = begin(n);
    times_.assign(count, 0);
    for (size_t i = 0; i < count; ++i) {
      ++times_[first_like(i, n, [&](size_t a, size_t b) { return same_words(a, b, n); })];
    }
    if (count == 0) return 0;
    const auto best = static_cast<size_t>(std::max_element(times_.begin(), times_.end()) - times_.begin());
    return (length(best, n) + n - 1) * times_[best];
  }

  // Characters in n-grams that were there before, without the spaces; reading goes on behind each of them. Alike are those of the
  // same characters, wherever their words end.
  uint64_t repeated(size_t n) {
    const size_t count = begin(n);
    uint64_t characters = 0;
    for (size_t i = 0; i < count;) {
      const bool is_new = first_like(i, n, [](size_t, size_t) { return true; }) == i;
      if (!is_new) characters += length(i, n);
      i += is_new ? 1 : n;
    }
    return characters;
  }

 private:
  static constexpr uint64_t kBase = 0xD6E8FEB86659FD93ULL;

  // Empties the table; returns the number of n-grams.
  size_t begin(size_t n) {
    const size_t words = ends_.size() - 1, count = words < n ? 0 : words - n + 1;
    size_t size = 16;
    while (size < 2 * count) size *= 2;
    slots_.assign(size, 0);
    return count;
  }

  size_t length(size_t i, size_t n) const { return ends_[i + n] - ends_[i]; }

  uint64_t hash(size_t i, size_t n) {
    const size_t size = length(i, n);
    while (powers_.size() <= size) powers_.push_back(powers_.back() * kBase);
    return prefixes_[i + n] - prefixes_[i] * powers_[size];
  }

  bool same_words(size_t a, size_t b, size_t n) const {
    for (size_t k = 1; k < n; ++k) {
      if (length(a, k) != length(b, k)) return false;
    }
    return true;
  }

  // The first n-gram of the same characters, of those looked for so far, for which `too` also holds; i where there is none yet.
  template <typename Too>
  size_t first_like(size_t i, size_t n, Too&& too) {
    const uint64_t mine = hash(i, n);
    const std::u32string_view all = characters_;
    const auto string = [&](size_t k) { return all.substr(ends_[k], length(k, n)); };
    for (size_t slot = finish(mine) & (slots_.size() - 1);; slot = (slot + 1) & (slots_.size() - 1)) {
      if (slots_[slot] == 0) {
        slots_[slot] = i + 1;
        return i;
      }
      const size_t other = slots_[slot] - 1;
      if (hash(other, n) == mine && string(other) == string(i) && too(other, i)) return other;
    }
  }

  std::u32string characters_;        // of all words, one after another
  std::vector<size_t> ends_{0};      // ends_[i + 1]: where word i ends in them
  std::vector<uint64_t> prefixes_{0};  // hash of all words before
  std::vector<uint64_t> powers_;
  std::vector<size_t> slots_;  // an n-gram + 1, or 0
  std::vector<uint64_t> times_;
};

}  // namespace cptron
