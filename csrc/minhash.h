// MinHash: sets of shingle hashes, signatures of sets, keys of bands. All integers, so every variant gives the same bits.
//
// Shapes: a set is [n] sorted, distinct; a signature [P]; with bands of R rows there are P / R keys.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "words.h"

namespace cptron {

// Sorts by bytes, lowest first: for the hundreds of hashes of a document several times as fast as a comparison sort.
inline void radix_sort(std::vector<uint32_t>& values, std::vector<uint32_t>& scratch) {
  scratch.resize(values.size());
  for (int shift = 0; shift < 32; shift += 8) {
    size_t starts[257] = {};
    for (const uint32_t value : values) ++starts[(value >> shift & 0xFF) + 1];
    for (int i = 0; i < 256; ++i) starts[i + 1] += starts[i];
    for (const uint32_t value : values) scratch[starts[value >> shift & 0xFF]++] = value;
    values.swap(scratch);
  }
}

// The set of a document: the lower halves of its shingles' hashes. Two of n different shingles meet with chance n^2 / 2^33.
class ShingleSet {
 public:
  ShingleSet(const Folding& fold, size_t size, bool characters) : fold_(fold), size_(size), characters_(characters) {}

  const std::vector<uint32_t>& operator()(const uint8_t* begin, const uint8_t* end) {
    words_.clear();
    set_.clear();
    const auto keep = [&](uint64_t hash, const uint8_t*, const uint8_t*) { words_.push_back(hash); };
    if (characters_) {
      walk_characters(fold_, begin, end, keep);
    } else {
      walk_words(fold_, begin, end, keep);
    }
    walk_shingles(words_, size_, true, [&](uint64_t hash, size_t) { set_.push_back(static_cast<uint32_t>(hash)); });
    if (set_.size() < 64) {
      std::sort(set_.begin(), set_.end());
    } else {
      radix_sort(set_, scratch_);
    }
    set_.erase(std::unique(set_.begin(), set_.end()), set_.end());
    return set_;
  }

  size_t num_words() const { return words_.size(); }

 private:
  Folding fold_;
  size_t size_;
  bool characters_;
  std::vector<uint64_t> words_;
  std::vector<uint32_t> set_, scratch_;
};

inline uint32_t finish32(uint32_t hash) {  // Murmur3's finalizer of 32 bits
  hash = (hash ^ hash >> 16) * 0x85EBCA6BU;
  hash = (hash ^ hash >> 13) * 0xC2B2AE35U;
  return hash ^ hash >> 16;
}

constexpr size_t kLanes = 32;  // permutations that are worked on together; the signature's length is padded to a multiple

// min over x of multiplier * finish32(x) + addend modulo 2^32 for every permutation: the scheme `affine32` of datasketch 2.
// `mixed` holds finish32 of the set. Written with vectors of `Width` bytes, which compilers split where the machine's are smaller.
template <int Width>
struct Lanes {
  typedef uint32_t Vector __attribute__((vector_size(Width)));
  static constexpr size_t kEach = Width / sizeof(uint32_t);
  static constexpr size_t kVectors = kLanes / kEach;

  __attribute__((always_inline)) static inline void minima(const uint32_t* mixed, size_t n, const uint32_t* multipliers,
                                                           const uint32_t* addends, size_t permutations, uint32_t* out) {
    for (size_t first = 0; first < permutations; first += kLanes) {
      Vector a[kVectors], b[kVectors], least[kVectors];
      std::memcpy(a, multipliers + first, sizeof a);
      std::memcpy(b, addends + first, sizeof b);
      for (size_t k = 0; k < kVectors; ++k) least[k] = ~Vector{};
      for (size_t i = 0; i < n; ++i) {
        for (size_t k = 0; k < kVectors; ++k) {
          const Vector value = a[k] * mixed[i] + b[k];
          least[k] = value < least[k] ? value : least[k];
        }
      }
      std::memcpy(out + first, least, sizeof least);
    }
  }
};

using Minima = void (*)(const uint32_t*, size_t, const uint32_t*, const uint32_t*, size_t, uint32_t*);

inline void minima_portable(const uint32_t* x, size_t n, const uint32_t* a, const uint32_t* b, size_t p, uint32_t* out) {
  Lanes<16>::minima(x, n, a, b, p, out);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline void minima_avx2(const uint32_t* x, size_t n, const uint32_t* a, const uint32_t* b,
                                                        size_t p, uint32_t* out) {
  Lanes<32>::minima(x, n, a, b, p, out);
}
__attribute__((target("avx512f"))) inline void minima_avx512(const uint32_t* x, size_t n, const uint32_t* a,
                                                             const uint32_t* b, size_t p, uint32_t* out) {
  Lanes<64>::minima(x, n, a, b, p, out);
}
#endif

// What this machine can run, the fastest last.
inline std::vector<std::pair<std::string, Minima>> minima_variants() {
  std::vector<std::pair<std::string, Minima>> found{{"portable", &minima_portable}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) found.emplace_back("avx2", &minima_avx2);
  if (__builtin_cpu_supports("avx512f")) found.emplace_back("avx512", &minima_avx512);
#endif
  return found;
}

class Signatures {
 public:
  Signatures(const uint32_t* multipliers, const uint32_t* addends, size_t permutations, Minima minima)
      : permutations_(permutations), minima_(minima) {
    const size_t padded = (permutations + kLanes - 1) / kLanes * kLanes;
    multipliers_.assign(padded, 0);
    addends_.assign(padded, 0);
    least_.resize(padded);
    std::copy(multipliers, multipliers + permutations, multipliers_.begin());
    std::copy(addends, addends + permutations, addends_.begin());
  }

  void operator()(const uint32_t* set, size_t n, uint32_t* out) {
    mixed_.resize(n);
    for (size_t i = 0; i < n; ++i) mixed_[i] = finish32(set[i]);
    minima_(mixed_.data(), n, multipliers_.data(), addends_.data(), multipliers_.size(), least_.data());
    std::copy(least_.begin(), least_.begin() + static_cast<std::ptrdiff_t>(permutations_), out);
  }

 private:
  size_t permutations_;
  Minima minima_;
  std::vector<uint32_t> multipliers_, addends_, least_, mixed_;
};

// One number for the rows of a band; the band's index is in it, so that keys of two bands say nothing of each other.
inline uint64_t band_key(const uint32_t* rows, size_t num_rows, uint64_t band) {
  uint64_t key = finish(band + 1);
  for (size_t i = 0; i < num_rows; ++i) key = finish(key ^ rows[i]);
  return key;
}

}  // namespace cptron
