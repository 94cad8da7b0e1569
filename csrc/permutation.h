// A keyed permutation of 0..n-1 that is computed, not stored: any element in constant time, from a 64-bit key.
//
// A Feistel network over the mixed-radix grid a x b >= n with a = ceil(sqrt(n)), b = ceil(n / a) (Black and Rogaway 2002,
// "Ciphers with arbitrary finite domains"); the fewer than a points of the grid beyond n are walked over.

#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>

namespace cptron {

// splitmix64 (Steele, Lea and Flood 2014): expands a key into round keys.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t key) : state_(key) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

class Permutation {
 public:
  static constexpr uint64_t kMost = uint64_t{1} << 62;

  // Not `shuffled`, it leaves every number where it is, whatever the key.
  Permutation(uint64_t n, uint64_t key, bool shuffled = true)
      : n_(n), rounds_(!shuffled ? 0 : n < kSmall ? kMostRounds : kRounds), rows_(1), columns_(1) {
    if (n > kMost) throw std::invalid_argument("permutation: n must be at most 2^62");
    // the root of a double is near; integers make it exact on every platform
    rows_ = static_cast<uint64_t>(std::sqrt(static_cast<double>(n)));
    while (rows_ * rows_ < n) ++rows_;
    while (rows_ > 1 && (rows_ - 1) * (rows_ - 1) >= n) --rows_;
    if (n > 0) columns_ = (n + rows_ - 1) / rows_;
    SplitMix64 keys(key);
    for (int round = 0; round < rounds_; ++round) add_[round] = keys.next();
  }

  uint64_t size() const { return n_; }

  static constexpr int64_t kAtOnce = 64;

  // Elements first, first + 1, ..., at most kAtOnce of them: the same numbers, computed side by side.
  void range(uint64_t first, int64_t count, uint64_t* out) const {
    if (rounds_ == 0) {
      for (int64_t i = 0; i < count; ++i) out[i] = first + static_cast<uint64_t>(i);
      return;
    }
    uint64_t row[kAtOnce], column[kAtOnce];
    uint64_t r = first / columns_;
    uint64_t c = first - r * columns_;
    for (int64_t i = 0; i < kAtOnce; ++i) {  // beyond `count` the numbers are not used
      row[i] = r;
      column[i] = c;
      if (++c == columns_) c = 0, ++r;
    }
    all_rounds(*this, row, column);
    for (int64_t i = 0; i < count; ++i) {
      out[i] = row[i] * columns_ + column[i];
      while (out[i] >= n_) out[i] = once(out[i]);
    }
  }

  uint64_t operator()(uint64_t index) const {
    if (rounds_ == 0) return index;
    do {
      index = once(index);
    } while (index >= n_);
    return index;
  }

 private:
  // On a small grid a round has few values to choose from, so more rounds are needed to reach every order alike.
  static constexpr uint64_t kSmall = 4096;
  static constexpr int kMostRounds = 24;
  static constexpr int kRounds = 4;  // what makes a Feistel network pseudorandom (Luby and Rackoff 1988)

  using Rounds = void(const Permutation&, uint64_t*, uint64_t*);

  __attribute__((always_inline)) static inline void rounds(const Permutation& p, uint64_t* row, uint64_t* column) {
    for (int round = 0; round < p.rounds_; round += 2) {
      for (int64_t i = 0; i < kAtOnce; ++i) {
        row[i] += p.scatter(column[i], round, p.rows_);
        row[i] -= row[i] >= p.rows_ ? p.rows_ : 0;
      }
      for (int64_t i = 0; i < kAtOnce; ++i) {
        column[i] += p.scatter(row[i], round + 1, p.columns_);
        column[i] -= column[i] >= p.columns_ ? p.columns_ : 0;
      }
    }
  }

  static void rounds_anywhere(const Permutation& p, uint64_t* row, uint64_t* column) { rounds(p, row, column); }

#if defined(__x86_64__)
  // Multiplies 64-bit numbers eight at a time; integers, so the results are the same.
  __attribute__((target("avx512f,avx512dq,avx512vl"))) static void rounds_avx512(const Permutation& p, uint64_t* row,
                                                                                uint64_t* column) {
    rounds(p, row, column);
  }

  static void all_rounds(const Permutation& p, uint64_t* row, uint64_t* column) {
    static Rounds* const chosen = __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
                                      ? rounds_avx512
                                      : rounds_anywhere;
    chosen(p, row, column);
  }
#else
  static void all_rounds(const Permutation& p, uint64_t* row, uint64_t* column) { rounds_anywhere(p, row, column); }
#endif

  // Uniform in [0, bound) from a hash of x under the key of a round; bound is at most 2^31.
  __attribute__((always_inline)) uint64_t scatter(uint64_t x, int round, uint64_t bound) const {
    uint64_t z = (x + add_[round]) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 32)) * 0x94D049BB133111EBULL;
    return ((z >> 32) * bound) >> 32;
  }

  void two_rounds(int round, uint64_t& row, uint64_t& column) const {
    row += scatter(column, round, rows_);
    row -= row >= rows_ ? rows_ : 0;
    column += scatter(row, round + 1, columns_);
    column -= column >= columns_ ? columns_ : 0;
  }

  uint64_t once(uint64_t index) const {
    uint64_t row = index / columns_;
    uint64_t column = index - row * columns_;
    for (int round = 0; round < kRounds; round += 2) two_rounds(round, row, column);
    for (int round = kRounds; round < rounds_; round += 2) two_rounds(round, row, column);
    return row * columns_ + column;
  }

  uint64_t n_;
  int rounds_;
  uint64_t rows_;
  uint64_t columns_;
  uint64_t add_[kMostRounds];
};

}  // namespace cptron
