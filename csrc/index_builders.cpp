// Index builders of the data room: document and sample shuffles, the sample index, and the blend.
//
// Every decision is made in integers, so that all platforms and compilers give the same order. Each function has a twin in
// plain Python in tests/unit/kernels_reference.py and is tested for equality with it.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// splitmix64 (Steele, Lea and Flood 2014): a counter stepped by an odd constant, then mixed.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t key) : state_(key) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

  // Uniform in [0, bound), without bias: Lemire 2019, multiplication with rejection.
  uint64_t below(uint64_t bound) {
    unsigned __int128 product = static_cast<unsigned __int128>(next()) * bound;
    if (static_cast<uint64_t>(product) < bound) {
      const uint64_t threshold = (0 - bound) % bound;
      while (static_cast<uint64_t>(product) < threshold) {
        product = static_cast<unsigned __int128>(next()) * bound;
      }
    }
    return static_cast<uint64_t>(product >> 64);
  }

 private:
  uint64_t state_;
};

// A permutation of 0..n-1: Fisher-Yates from the back, drawn from splitmix64(key).
Array<int64_t> shuffle(int64_t n, uint64_t key) {
  if (n < 0) throw std::invalid_argument("shuffle: n must not be negative");
  Array<int64_t> result(n);
  int64_t* order = result.mutable_data();
  {
    py::gil_scoped_release release;
    for (int64_t i = 0; i < n; ++i) order[i] = i;
    SplitMix64 random(key);
    for (int64_t i = n - 1; i > 0; --i) {
      std::swap(order[i], order[random.below(static_cast<uint64_t>(i) + 1)]);
    }
  }
  return result;
}

// Where each sample starts: rows (position in doc_order, offset in that document), one more row than samples. Sample i reads
// seq_length + 1 tokens from row i on; the last of them is the first of sample i + 1. Tokens that fill no sample are left over.
Array<int64_t> build_sample_index(Array<int32_t> lengths, Array<int64_t> doc_order, int64_t seq_length) {
  if (seq_length < 1) throw std::invalid_argument("build_sample_index: seq_length must be positive");
  const int64_t num_documents = lengths.size();
  const int64_t num_positions = doc_order.size();
  const int32_t* length_of = lengths.data();
  const int64_t* document_at = doc_order.data();
  int64_t tokens = 0;
  for (int64_t p = 0; p < num_positions; ++p) {
    if (document_at[p] < 0 || document_at[p] >= num_documents) {
      throw std::out_of_range("build_sample_index: doc_order names a document that does not exist");
    }
    if (length_of[document_at[p]] < 0) {
      throw std::invalid_argument("build_sample_index: a document's length must not be negative");
    }
    tokens += length_of[document_at[p]];
  }
  const int64_t num_samples = tokens > 0 ? (tokens - 1) / seq_length : 0;
  Array<int64_t> result({num_samples + 1, static_cast<int64_t>(2)});
  int64_t* row = result.mutable_data();
  {
    py::gil_scoped_release release;
    int64_t position = 0;
    int64_t offset = 0;
    for (int64_t sample = 0; sample <= num_samples; ++sample) {
      while (position < num_positions && offset >= length_of[document_at[position]]) {
        offset -= length_of[document_at[position]];
        ++position;
      }
      row[2 * sample] = position;
      row[2 * sample + 1] = offset;
      offset += seq_length;
    }
  }
  return result;
}

// The sources of the next n samples. Each time the source that is furthest behind its share is drawn: the largest
// weight * (drawn + 1) - count * total_weight, ties to the first. `counts` (drawn so far) is advanced in place.
Array<int32_t> draw_blend(Array<uint64_t> weights, py::array_t<int64_t, py::array::c_style> counts, int64_t n) {
  const int64_t num_sources = weights.size();
  if (num_sources < 1 || counts.size() != num_sources) {
    throw std::invalid_argument("draw_blend: weights and counts must have the same length, at least one");
  }
  const uint64_t* weight = weights.data();
  int64_t* count = counts.mutable_data();
  __int128 total_weight = 0;
  __int128 drawn = 0;
  for (int64_t s = 0; s < num_sources; ++s) {
    total_weight += weight[s];
    drawn += count[s];
  }
  Array<int32_t> result(n);
  int32_t* source = result.mutable_data();
  {
    py::gil_scoped_release release;
    std::vector<__int128> deficit(num_sources);
    for (int64_t s = 0; s < num_sources; ++s) {
      deficit[s] = static_cast<__int128>(weight[s]) * drawn - static_cast<__int128>(count[s]) * total_weight;
    }
    for (int64_t i = 0; i < n; ++i) {
      int64_t best = 0;
      for (int64_t s = 0; s < num_sources; ++s) {
        deficit[s] += weight[s];
        if (deficit[s] > deficit[best]) best = s;
      }
      deficit[best] -= total_weight;
      ++count[best];
      source[i] = static_cast<int32_t>(best);
    }
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Compiled index builders of cptron.data; see csrc/index_builders.cpp.";
  m.def("shuffle", &shuffle, py::arg("n"), py::arg("key"));
  // noconvert: another dtype would be wrapped or truncated to this one without a word.
  m.def("build_sample_index", &build_sample_index, py::arg("lengths").noconvert(), py::arg("doc_order").noconvert(),
        py::arg("seq_length"));
  m.def("draw_blend", &draw_blend, py::arg("weights").noconvert(), py::arg("counts").noconvert(), py::arg("n"));
}
