// Words of UTF-8 text, and hashes of them. A word is a run of what the folding table keeps; a character of a script that is written
// without spaces is a word of its own, together with the marks on it. Any bytes may come in: what is not UTF-8 counts as U+FFFD.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cptron {

// One entry for every code point: 0 separates, kSkipped is as if it were not there, else the folded code point and two flags.
class Folding {
 public:
  static constexpr uint32_t kSeparator = 0;
  static constexpr uint32_t kSkipped = 0xFFFFFFFF;
  static constexpr uint32_t kAlone = 1U << 31;    // begins and ends a word
  static constexpr uint32_t kExtends = 1U << 30;  // goes on with the word, even with one of kAlone
  static constexpr uint32_t kCodePoint = (1U << 21) - 1;

  Folding(const uint32_t* table, size_t size) : table_(table), size_(size) {}
  uint32_t operator()(uint32_t code_point) const { return code_point < size_ ? table_[code_point] : kSeparator; }

 private:
  const uint32_t* table_;
  size_t size_;
};

inline bool continues(const uint8_t* at, const uint8_t* end) { return at < end && (*at & 0xC0) == 0x80; }

// The code point at `at`, which moves past it: past one byte where the bytes are no UTF-8. Surrogates pass.
inline uint32_t next_code_point(const uint8_t*& at, const uint8_t* end) {
  const uint32_t lead = *at++;
  if (lead < 0x80) return lead;
  const int more = lead >= 0xF0 && lead < 0xF8 ? 3 : lead >= 0xE0 && lead < 0xF0 ? 2 : lead >= 0xC0 && lead < 0xE0 ? 1 : 0;
  if (more == 0) return 0xFFFD;
  uint32_t code_point = lead & (0x3FU >> more);
  const uint8_t* next = at;
  for (int i = 0; i < more; ++i) {
    if (!continues(next, end)) return 0xFFFD;
    code_point = code_point << 6 | (*next++ & 0x3FU);
  }
  static constexpr uint32_t kSmallest[4] = {0, 0x80, 0x800, 0x10000};
  if (code_point < kSmallest[more] || code_point > 0x10FFFF) return 0xFFFD;
  at = next;
  return code_point;
}

constexpr uint64_t kWordSeed = 0x9E3779B97F4A7C15ULL;

inline uint64_t add_character(uint64_t hash, uint32_t character) {
  hash = (hash + character) * 0x9FB21C651E98DF25ULL;
  return hash ^ hash >> 32;
}

// Calls `on_word(hash, first byte, byte after the last)` for every word.
template <typename OnWord>
void walk_words(const Folding& fold, const uint8_t* begin, const uint8_t* end, OnWord&& on_word) {
  uint64_t hash = 0;
  const uint8_t* first = nullptr;  // null between words
  const uint8_t* last = nullptr;
  bool alone = false;
  const auto close = [&] {
    if (first != nullptr) on_word(hash, first, last);
    first = nullptr;
  };
  for (const uint8_t* at = begin; at < end;) {
    const uint8_t* start = at;
    const uint32_t entry = fold(next_code_point(at, end));
    if (entry == Folding::kSkipped) continue;
    if (entry == Folding::kSeparator) {
      close();
      continue;
    }
    const bool starts_alone = (entry & Folding::kAlone) != 0;
    if ((entry & Folding::kExtends) == 0 && (starts_alone || alone)) close();
    if (first == nullptr) {
      first = start;
      hash = kWordSeed;
      alone = starts_alone;
    }
    hash = add_character(hash, entry & Folding::kCodePoint);
    last = at;
  }
  close();
}

// The same for every folded character; all that separates two words is one space.
template <typename OnCharacter>
void walk_characters(const Folding& fold, const uint8_t* begin, const uint8_t* end, OnCharacter&& on_character) {
  const uint64_t space = add_character(kWordSeed, ' ');
  const uint8_t* gap = nullptr;
  bool begun = false;
  for (const uint8_t* at = begin; at < end;) {
    const uint8_t* start = at;
    const uint32_t entry = fold(next_code_point(at, end));
    if (entry == Folding::kSkipped) continue;
    if (entry == Folding::kSeparator) {
      if (begun && gap == nullptr) gap = start;
      continue;
    }
    if (gap != nullptr) on_character(space, gap, start);
    gap = nullptr;
    begun = true;
    on_character(add_character(kWordSeed, entry & Folding::kCodePoint), start, at);
  }
}

// Murmur3's finalizer of 64 bits: every bit of the input moves every bit of the result.
inline uint64_t finish(uint64_t hash) {
  hash = (hash ^ hash >> 33) * 0xFF51AFD7ED558CCDULL;
  hash = (hash ^ hash >> 33) * 0xC4CEB9FE1A85EC53ULL;
  return hash ^ hash >> 33;
}

// Calls `on_shingle(hash, index of the first word)` for every `size` words in a row. Fewer words than that are one shingle if
// `short_too`, and none otherwise.
template <typename OnShingle>
void walk_shingles(const std::vector<uint64_t>& words, size_t size, bool short_too, OnShingle&& on_shingle) {
  constexpr uint64_t kBase = 0xD6E8FEB86659FD93ULL;
  if (words.empty()) return;
  uint64_t leaving = 1;  // kBase to the power of `size`
  for (size_t i = 0; i < size; ++i) leaving *= kBase;
  uint64_t sum = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    sum = sum * kBase + words[i];
    if (i >= size) sum -= words[i - size] * leaving;
    if (i + 1 >= size) on_shingle(finish(sum), i + 1 - size);
  }
  if (words.size() < size && short_too) on_shingle(finish(sum), size_t{0});
}

}  // namespace cptron
