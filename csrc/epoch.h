// One epoch of one source: which tokens its samples are.
//
// Documents come in the order of a keyed permutation, which is never stored. What is stored is one number for each window of
// documents: how much of the epoch lies before it. A sample is found by a binary search over the windows and a walk inside one.

#pragma once

#include <algorithm>
#include <cstdint>
#include <future>
#include <stdexcept>
#include <utility>
#include <vector>

#include "permutation.h"
#include "token_file.h"

namespace cptron {

// Consecutive predictions of one document: token `offset` + i predicts the one after it, for i in [0, count).
struct Span {
  int64_t document;
  int64_t offset;
  int64_t count;
};

// Sums of `measure(window)` before each window, and the total: num_windows + 1 numbers. What `measure` throws on another thread
// is thrown here.
template <typename Measure>
void running_sums(int64_t num_windows, int threads, int64_t* out, const Measure& measure) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, num_windows / 64));
  std::vector<std::future<void>> others;  // a future of std::async waits for its thread when it is destroyed
  const auto work = [&](int64_t part) {
    for (int64_t w = num_windows * part / parts; w < num_windows * (part + 1) / parts; ++w) out[w + 1] = measure(w);
  };
  for (int64_t part = 1; part < parts; ++part) others.push_back(std::async(std::launch::async, work, part));
  work(0);
  for (std::future<void>& other : others) other.get();
  out[0] = 0;
  for (int64_t w = 0; w < num_windows; ++w) out[w + 1] += out[w];
}

// The window that holds position `at`, given the running sums; `at` must be below the total.
inline int64_t window_of(const int64_t* starts, int64_t num_windows, int64_t at) {
  return std::upper_bound(starts, starts + num_windows + 1, at) - starts - 1;
}

// Documents joined into one stream, which is cut into samples; the last one may be shorter.
class JoinedDocuments {
 public:
  static constexpr int64_t kWindow = Permutation::kAtOnce;

  static int64_t num_windows(int64_t num_documents) { return (num_documents + kWindow - 1) / kWindow; }

  // Tokens before each window of documents.
  static void starts(const TokenFile& file, uint64_t key, bool shuffled, int threads, int64_t* out) {
    const Permutation order(static_cast<uint64_t>(file.num_documents()), key, shuffled);
    running_sums(num_windows(file.num_documents()), threads, out, [&](int64_t window) {
      // two passes, so that the loads from memory overlap
      uint64_t documents[kWindow];
      const int64_t first = window * kWindow;
      const int64_t count = std::min<int64_t>(kWindow, file.num_documents() - first);
      order.range(static_cast<uint64_t>(first), count, documents);
      int64_t tokens = 0;
      for (int64_t i = 0; i < count; ++i) tokens += file.length(documents[i]);
      return tokens;
    });
  }

  JoinedDocuments(const TokenFile& file, const int64_t* starts, uint64_t key, bool shuffled, int64_t seq_length)
      : file_(file),
        order_(static_cast<uint64_t>(file.num_documents()), key, shuffled),
        starts_(starts),
        num_windows_(num_windows(file.num_documents())),
        seq_length_(seq_length) {}

  int64_t num_samples() const { return (starts_[num_windows_] - 1 + seq_length_ - 1) / seq_length_; }

  // Calls `visit(document, offset, tokens)` for each piece of the seq_length + 1 tokens of a sample.
  template <typename Visit>
  void walk(int64_t sample, const Visit& visit) const {
    const int64_t at = sample * seq_length_;
    int64_t missing = std::min(seq_length_ + 1, starts_[num_windows_] - at);
    const int64_t window = window_of(starts_, num_windows_, at);
    int64_t position = window * kWindow;
    int64_t offset = at - starts_[window];
    while (missing > 0) {
      if (position >= file_.num_documents()) throw std::out_of_range("the lengths in .idx and the order built from them disagree");
      const uint64_t document = order_(static_cast<uint64_t>(position));
      const int64_t length = file_.length(document);
      if (offset < length) {
        const int64_t count = std::min(missing, length - offset);
        visit(static_cast<int64_t>(document), offset, count);
        missing -= count;
        offset = 0;
      } else {
        offset -= length;
      }
      ++position;
    }
  }

 private:
  const TokenFile& file_;
  Permutation order_;
  const int64_t* starts_;
  int64_t num_windows_;
  int64_t seq_length_;
};

// Samples that hold whole documents, or whole pieces of long ones, put together by best fit decreasing within a window of
// documents (Ding et al. 2024, "Fewer truncations improve language modeling"). A piece of p predictions takes p places.
class PackedDocuments {
 public:
  static constexpr int64_t kWindow = 1024;

  using Rows = std::vector<std::vector<Span>>;

  static int64_t num_windows(int64_t num_documents) { return (num_documents + kWindow - 1) / kWindow; }

  // The samples of a window: first the pieces that fill one alone, then those put together.
  struct Packed {
    std::vector<Span> whole;
    Rows rows;

    int64_t size() const { return static_cast<int64_t>(whole.size() + rows.size()); }
  };

  // Samples before each window of documents.
  static void starts(const TokenFile& file, uint64_t key, bool shuffled, int64_t seq_length, int threads,
                     int64_t* out) {
    const Permutation order(static_cast<uint64_t>(file.num_documents()), key, shuffled);
    running_sums(num_windows(file.num_documents()), threads, out, [&](int64_t window) {
      return pack(file, order, seq_length, window).size();
    });
  }

  PackedDocuments(const TokenFile& file, const int64_t* starts, uint64_t key, bool shuffled, int64_t seq_length)
      : file_(file),
        order_(static_cast<uint64_t>(file.num_documents()), key, shuffled),
        starts_(starts),
        num_windows_(num_windows(file.num_documents())),
        seq_length_(seq_length) {}

  int64_t num_samples() const { return starts_[num_windows_]; }

  std::vector<Span> row(int64_t sample) const {
    const int64_t window = window_of(starts_, num_windows_, sample);
    Packed packed = pack(file_, order_, seq_length_, window);
    const auto number = static_cast<size_t>(sample - starts_[window]);
    if (static_cast<int64_t>(number) >= packed.size()) {
      throw std::out_of_range("the lengths in .idx and the packing built from them disagree");
    }
    if (number < packed.whole.size()) return {packed.whole[number]};
    return std::move(packed.rows[number - packed.whole.size()]);
  }

 private:
  static Packed pack(const TokenFile& file, const Permutation& order, int64_t seq_length, int64_t window) {
    Packed packed;
    std::vector<Span> pieces;
    const int64_t first = window * kWindow;
    const int64_t last = std::min<int64_t>(first + kWindow, file.num_documents());
    uint64_t documents[Permutation::kAtOnce];
    for (int64_t position = first; position < last; position += Permutation::kAtOnce) {
      const int64_t count = std::min(Permutation::kAtOnce, last - position);
      order.range(static_cast<uint64_t>(position), count, documents);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t predictions = file.length(documents[i]) - 1;
        for (int64_t offset = 0; offset < predictions; offset += seq_length) {
          const Span piece{static_cast<int64_t>(documents[i]), offset, std::min(seq_length, predictions - offset)};
          (piece.count == seq_length ? packed.whole : pieces).push_back(piece);
        }
      }
    }
    std::stable_sort(pieces.begin(), pieces.end(), [](const Span& a, const Span& b) { return a.count > b.count; });
    packed.rows = fit(pieces, seq_length);
    return packed;
  }

  // Best fit: each piece goes to the row with the least room that still holds it, among those the one opened first.
  static Rows fit(const std::vector<Span>& pieces, int64_t seq_length) {
    Rows rows;
    std::vector<std::pair<int64_t, size_t>> rooms;  // (room left, row), ascending; full rows are left out
    for (const Span& piece : pieces) {
      auto found = std::lower_bound(rooms.begin(), rooms.end(), std::make_pair(piece.count, size_t{0}));
      size_t row = rows.size();
      int64_t room = seq_length;
      if (found == rooms.end()) {
        rows.emplace_back();
      } else {
        row = found->second;
        room = found->first;
        rooms.erase(found);
      }
      rows[row].push_back(piece);
      if (room > piece.count) {
        const auto rest = std::make_pair(room - piece.count, row);
        rooms.insert(std::lower_bound(rooms.begin(), rooms.end(), rest), rest);
      }
    }
    return rows;
  }

  const TokenFile& file_;
  Permutation order_;
  const int64_t* starts_;
  int64_t num_windows_;
  int64_t seq_length_;
};

}  // namespace cptron
