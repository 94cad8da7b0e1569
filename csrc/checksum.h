// A checksum of a matrix that does not depend on how the matrix is cut: the sum over all elements of
//   bits(i, j) * row(i) * column(j)   modulo 2^64,
// so that the checksums of the pieces, wherever they lie, add up to that of the whole. `row` and `column` are fixed odd
// pseudo-random numbers, hence two elements that change places, or one that changes a bit, change the sum.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cptron {

// splitmix64 (Steele et al. 2014), as a function of its index.
inline uint64_t mixed(uint64_t index) {
  uint64_t z = index * 0x9E3779B97F4A7C15ULL + 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

inline uint64_t row_factor(uint64_t row) { return mixed(2 * row) | 1; }
inline uint32_t column_factor(uint64_t column) { return static_cast<uint32_t>(mixed(2 * column + 1) >> 32) | 1; }

// `data` is `[rows, columns]`, contiguous; its first element is (first_row, first_column) of the whole matrix.
template <typename T>
uint64_t checksum(const T* data, size_t rows, size_t columns, uint64_t first_row, uint64_t first_column) {
  std::vector<uint32_t> factors(columns);
  for (size_t j = 0; j < columns; ++j) factors[j] = column_factor(first_column + j);
  uint64_t total = 0;
  for (size_t i = 0; i < rows; ++i) {
    const T* row = data + i * columns;
    uint64_t sum = 0;
    for (size_t j = 0; j < columns; ++j) sum += static_cast<uint64_t>(row[j]) * factors[j];
    total += sum * row_factor(first_row + i);
  }
  return total;
}

}  // namespace cptron
