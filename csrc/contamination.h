// Runs of words that documents share with items of evaluation sets. A run is found by its hash and then compared word by word, so
// that no collision of hashes condemns a document.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "words.h"

namespace cptron {

struct Match {
  int64_t begin, end;       // bytes of the document
  int64_t item, item_word;  // the first item, in order, that has the run, and where it begins there
};

class Contamination {
 public:
  // An item with fewer than `size` words is one run of its own if it has `shortest`, and is left out otherwise.
  Contamination(std::vector<uint32_t> folding, size_t size, size_t shortest)
      : table_(std::move(folding)), size_(size), shortest_(shortest) {}

  // Returns the number of words; the item's number is the count of those before it.
  size_t add(const uint8_t* text, size_t bytes) {
    const auto item = static_cast<uint32_t>(items_.size());
    items_.emplace_back(reinterpret_cast<const char*>(text), bytes);
    Words words;
    read(begin_of(item), begin_of(item) + bytes, words);
    const size_t n = words.hashes.size();
    const size_t size = std::min(size_, n);
    if (size == 0 || (size < size_ && size < shortest_)) return n;
    Runs& runs = runs_of(size);
    walk_shingles(words.hashes, size, false, [&](uint64_t hash, size_t word) {
      runs.entries.push_back({hash, item, static_cast<uint32_t>(word), words.spans[word].first,
                              words.spans[word + size - 1].second});
    });
    runs.sorted = false;
    return n;
  }

  // Before anything is looked for; once, behind all items: it sorts all runs.
  void finish_adding() {
    for (Runs& runs : runs_) runs.prepare();
  }

  bool is_finished() const {
    return std::all_of(runs_.begin(), runs_.end(), [](const Runs& runs) { return runs.sorted; });
  }

  size_t num_runs() const {
    size_t sum = 0;
    for (const Runs& runs : runs_) sum += runs.entries.size();
    return sum;
  }

  void find(const uint8_t* text, size_t bytes, std::vector<Match>& matches) const {
    Words words;
    read(text, text + bytes, words);
    for (const Runs& runs : runs_) {
      walk_shingles(words.hashes, runs.size, false, [&](uint64_t hash, size_t word) {
        if (!runs.may_have(hash)) return;
        const int64_t begin = words.spans[word].first, end = words.spans[word + runs.size - 1].second;
        auto entry = std::lower_bound(runs.entries.begin(), runs.entries.end(), hash,
                                      [](const Entry& e, uint64_t h) { return e.hash < h; });
        for (; entry != runs.entries.end() && entry->hash == hash; ++entry) {
          const uint8_t* item = begin_of(entry->item);
          if (!same_words(text + begin, text + end, item + entry->begin, item + entry->end)) continue;
          matches.push_back({begin, end, entry->item, entry->word});
          break;
        }
      });
    }
  }

 private:
  struct Words {
    std::vector<uint64_t> hashes;
    std::vector<std::pair<int64_t, int64_t>> spans;  // bytes
  };
  struct Entry {
    uint64_t hash;
    uint32_t item, word;
    int64_t begin, end;  // bytes of the item
  };

  // All runs of one length, and a filter of bits that answers most questions without a search.
  struct Runs {
    size_t size;
    bool sorted = true;
    std::vector<Entry> entries;
    std::vector<uint64_t> bits;
    int shift = 0;

    void prepare() {
      if (sorted) return;
      std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
        return a.hash != b.hash ? a.hash < b.hash : a.item != b.item ? a.item < b.item : a.word < b.word;
      });
      int log2 = 10;
      while (log2 < 40 && (uint64_t{1} << log2) < 16 * entries.size()) ++log2;
      shift = 64 - log2;
      bits.assign((size_t{1} << log2) / 64, 0);
      for (const Entry& entry : entries) bits[entry.hash >> shift >> 6] |= uint64_t{1} << (entry.hash >> shift & 63);
      sorted = true;
    }
    bool may_have(uint64_t hash) const {
      return !bits.empty() && (bits[hash >> shift >> 6] >> (hash >> shift & 63) & 1) != 0;
    }
  };

  const uint8_t* begin_of(uint32_t item) const { return reinterpret_cast<const uint8_t*>(items_[item].data()); }
  Folding folding() const { return {table_.data(), table_.size()}; }

  void read(const uint8_t* begin, const uint8_t* end, Words& words) const {
    walk_words(folding(), begin, end, [&](uint64_t hash, const uint8_t* first, const uint8_t* last) {
      words.hashes.push_back(hash);
      words.spans.emplace_back(first - begin, last - begin);
    });
  }

  // The folded characters of each word, one after another, with a 0 after each word.
  std::vector<uint32_t> folded(const uint8_t* begin, const uint8_t* end) const {
    std::vector<uint32_t> characters;
    const Folding fold = folding();
    walk_words(fold, begin, end, [&](uint64_t, const uint8_t* first, const uint8_t* last) {
      for (const uint8_t* at = first; at < last;) {
        const uint32_t entry = fold(next_code_point(at, last));
        if (entry != Folding::kSkipped) characters.push_back(entry & Folding::kCodePoint);
      }
      characters.push_back(0);
    });
    return characters;
  }

  bool same_words(const uint8_t* begin, const uint8_t* end, const uint8_t* other, const uint8_t* other_end) const {
    return folded(begin, end) == folded(other, other_end);
  }

  Runs& runs_of(size_t size) {
    for (Runs& runs : runs_) {
      if (runs.size == size) return runs;
    }
    runs_.push_back({});
    runs_.back().size = size;
    return runs_.back();
  }

  std::vector<uint32_t> table_;
  size_t size_, shortest_;
  std::vector<std::string> items_;
  std::vector<Runs> runs_;
};

}  // namespace cptron
