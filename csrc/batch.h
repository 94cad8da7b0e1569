// Rows of a batch, written straight into the caller's arrays.
//
// Shapes: S predictions of a row. Inputs, labels, mask and documents are [S] each; places that predict nothing hold 0, and are
// one more document.

#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "epoch.h"

namespace cptron {

struct Row {
  int64_t* tokens;
  int64_t* labels;
  float* mask;
  int32_t* documents;  // of each input, numbered from 0 in the row
};

// What a sample adds to the accounts of its source: a position in the tokens, so labels count whether they are learned or not.
struct Account {
  int64_t documents = 0;    // documents that begin in the sample
  int64_t predictions = 0;  // labels
};

inline void check_ids(uint64_t largest, uint64_t vocab_size) {
  if (vocab_size > 0 && largest >= vocab_size) {
    throw std::out_of_range("token id " + std::to_string(static_cast<int64_t>(largest)) + " is outside the vocabulary of " +
                            std::to_string(vocab_size));
  }
}

inline void clear_from(const Row& row, int64_t start, int64_t seq_length) {
  std::fill(row.tokens + start, row.tokens + seq_length, 0);
  std::fill(row.labels + start, row.labels + seq_length, 0);
  std::fill(row.mask + start, row.mask + seq_length, 0.0F);
  // after the last input, not after the last piece: that one may be a label only
  std::fill(row.documents + start, row.documents + seq_length, start > 0 ? row.documents[start - 1] + 1 : 0);
}

inline void write_row(const TokenFile& file, const JoinedDocuments& epoch, int64_t sample, int64_t seq_length,
                      uint64_t vocab_size, const Row& row) {
  std::vector<int64_t> tokens(static_cast<size_t>(seq_length) + 1);
  std::vector<float> learned(static_cast<size_t>(seq_length) + 1);
  int64_t filled = 0;
  int32_t number = 0;
  uint64_t largest = 0;
  epoch.walk(sample, [&](int64_t document, int64_t offset, int64_t count) {
    largest = std::max(largest, file.read(static_cast<uint64_t>(document), offset, count, tokens.data() + filled));
    file.read_learned(static_cast<uint64_t>(document), offset, count, learned.data() + filled);
    const int64_t end = std::min(filled + count, seq_length);  // the last token of the sample is a label only
    std::fill(row.documents + filled, row.documents + end, number++);
    filled += count;
  });
  check_ids(largest, vocab_size);
  std::copy(tokens.begin(), tokens.begin() + filled - 1, row.tokens);
  std::copy(tokens.begin() + 1, tokens.begin() + filled, row.labels);
  std::copy(learned.begin() + 1, learned.begin() + filled, row.mask);
  clear_from(row, filled - 1, seq_length);
}

inline void write_row(const TokenFile& file, const PackedDocuments& epoch, int64_t sample, int64_t seq_length,
                      uint64_t vocab_size, const Row& row) {
  std::vector<int64_t> tokens(static_cast<size_t>(seq_length) + 1);
  std::vector<float> learned(static_cast<size_t>(seq_length) + 1);
  int64_t filled = 0;
  int32_t number = 0;
  uint64_t largest = 0;
  for (const Span& span : epoch.row(sample)) {
    const uint64_t document = static_cast<uint64_t>(span.document);
    largest = std::max(largest, file.read(document, span.offset, span.count + 1, tokens.data()));
    file.read_learned(document, span.offset, span.count + 1, learned.data());
    std::copy(tokens.begin(), tokens.begin() + span.count, row.tokens + filled);
    std::copy(tokens.begin() + 1, tokens.begin() + span.count + 1, row.labels + filled);
    std::copy(learned.begin() + 1, learned.begin() + span.count + 1, row.mask + filled);
    std::fill(row.documents + filled, row.documents + filled + span.count, number++);
    filled += span.count;
  }
  check_ids(largest, vocab_size);
  clear_from(row, filled, seq_length);
}

// Pieces of a sample as (document, first token, number of tokens), the label-only last token included.
inline std::vector<Span> pieces(const JoinedDocuments& epoch, int64_t sample) {
  std::vector<Span> found;
  epoch.walk(sample, [&](int64_t document, int64_t offset, int64_t count) { found.push_back({document, offset, count}); });
  return found;
}

inline std::vector<Span> pieces(const PackedDocuments& epoch, int64_t sample) {
  std::vector<Span> found = epoch.row(sample);
  for (Span& span : found) ++span.count;
  return found;
}

inline Account account(const JoinedDocuments& epoch, int64_t sample, int64_t seq_length) {
  Account sum;
  int64_t before = 0;
  const bool last = sample + 1 == epoch.num_samples();
  epoch.walk(sample, [&](int64_t, int64_t offset, int64_t count) {
    if (offset == 0 && (last || before < seq_length)) ++sum.documents;  // else it begins in the next sample
    before += count;
  });
  sum.predictions = before - 1;
  return sum;
}

inline Account account(const PackedDocuments& epoch, int64_t sample, int64_t) {
  Account sum;
  for (const Span& span : epoch.row(sample)) {
    sum.documents += span.offset == 0;
    sum.predictions += span.count;
  }
  return sum;
}

}  // namespace cptron
