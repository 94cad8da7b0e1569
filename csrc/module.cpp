// Python bindings of the kernels, `cptron._kernels`: those of the data room, the checksum of weights, and
// (corpus_module.cpp, prose_module.cpp) those of the corpus room. Every decision is made
// in integers, so that all platforms and compilers give the same order; each kernel has a twin in plain Python in
// tests/unit/kernels_reference.py, or in torch beside its caller. Objects keep the
// arrays they look into alive, nothing is shared between objects, and the interpreter lock is released while work is done.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "batch.h"
#include "blend.h"
#include "checksum.h"
#include "corpus_module.h"
#include "epoch.h"
#include "permutation.h"
#include "token_file.h"

namespace py = pybind11;
using namespace cptron;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Bytes = Array<uint8_t>;

void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(rule);
}

// Mapped files, and what keeps them mapped.
struct Tokens {
  Tokens(Bytes lengths_bytes, Bytes pointers_bytes, Bytes token_data, int token_bytes, Bytes learned_bytes,
         bool mask_beginnings)
      : lengths(std::move(lengths_bytes)),
        pointers(std::move(pointers_bytes)),
        tokens(std::move(token_data)),
        learned(std::move(learned_bytes)),
        file(lengths.data(), pointers.data(), lengths.size() / 4, tokens.data(), tokens.size(), token_bytes,
             learned.size() > 0 ? learned.data() : nullptr, mask_beginnings) {
    require(token_bytes == 1 || token_bytes == 2 || token_bytes == 4 || token_bytes == 8, "token_bytes must be 1, 2, 4 or 8");
    require(lengths.size() % 4 == 0 && pointers.size() == 2 * lengths.size(), "lengths need 4 bytes a document, pointers 8");
    require(learned.size() == 0 || learned.size() * token_bytes == tokens.size(), "a loss mask needs one byte a token");
  }
  Bytes lengths, pointers, tokens, learned;
  TokenFile file;
};

// Documents in an order, and that order's samples in another.
template <typename Documents>
struct Epoch {
  Epoch(const Tokens& file_tokens, Array<int64_t> window_starts, uint64_t document_key, uint64_t sample_key, int64_t seq_length_,
        bool shuffled)
      : tokens(file_tokens),
        starts(std::move(window_starts)),
        seq_length((require(seq_length_ > 0, "seq_length must be positive"), seq_length_)),
        documents((check_starts(), tokens.file), starts.data(), document_key, shuffled, seq_length),
        samples(static_cast<uint64_t>(documents.num_samples()), sample_key, shuffled) {}

  Epoch(const Epoch&) = delete;  // `documents` looks into `tokens`
  Epoch& operator=(const Epoch&) = delete;

  void check_starts() const {
    const int64_t windows = Documents::num_windows(tokens.file.num_documents());
    require(starts.ndim() == 1 && starts.shape(0) == windows + 1, "starts needs one number a window, and the total");
    for (int64_t w = 0; w < windows; ++w) require(starts.data()[w] <= starts.data()[w + 1], "starts must not fall");
    require(starts.data()[0] == 0 && starts.data()[windows] > 0, "starts must begin with 0 and the epoch not be empty");
  }

  int64_t number(int64_t sample) const {
    if (sample < 0 || sample >= documents.num_samples()) throw std::out_of_range("sample is outside the epoch");
    return static_cast<int64_t>(samples(static_cast<uint64_t>(sample)));
  }

  void read(const Array<int64_t>& wanted, Array<int64_t>& inputs, Array<int64_t>& labels, Array<float>& mask,
            Array<int32_t>& numbers, uint64_t vocab_size) const {
    const auto fits = [&](const py::array& out) {
      return out.ndim() == 2 && out.shape(0) == wanted.shape(0) && out.shape(1) == seq_length;
    };
    require(wanted.ndim() == 1 && fits(inputs) && fits(labels) && fits(mask) && fits(numbers),
            "outputs must be [len(samples), seq_length]");
    const int64_t* sample = wanted.data();
    const Row first{inputs.mutable_data(), labels.mutable_data(), mask.mutable_data(), numbers.mutable_data()};
    const int64_t rows = wanted.shape(0);
    py::gil_scoped_release release;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * seq_length;
      write_row(tokens.file, documents, number(sample[i]), seq_length, vocab_size,
                {first.tokens + at, first.labels + at, first.mask + at, first.documents + at});
    }
  }

  std::pair<int64_t, int64_t> count(const Array<int64_t>& wanted) const {
    const int64_t* sample = wanted.data();
    const int64_t size = wanted.size();
    py::gil_scoped_release release;
    Account sum;
    for (int64_t i = 0; i < size; ++i) {
      const Account one = account(documents, number(sample[i]), seq_length);
      sum.documents += one.documents;
      sum.predictions += one.predictions;
    }
    return {sum.documents, sum.predictions};
  }

  std::vector<std::tuple<int64_t, int64_t, int64_t>> spans(int64_t sample) const {
    std::vector<std::tuple<int64_t, int64_t, int64_t>> found;
    for (const Span& span : pieces(documents, number(sample))) found.emplace_back(span.document, span.offset, span.count);
    return found;
  }

  Tokens tokens;
  Array<int64_t> starts;
  int64_t seq_length;
  Documents documents;
  Permutation samples;
};

Array<int64_t> joined_starts(const Tokens& tokens, uint64_t key, int threads, bool shuffled) {
  Array<int64_t> starts(JoinedDocuments::num_windows(tokens.file.num_documents()) + 1);
  int64_t* out = starts.mutable_data();
  py::gil_scoped_release release;
  JoinedDocuments::starts(tokens.file, key, shuffled, threads, out);
  return starts;
}

Array<int64_t> packed_starts(const Tokens& tokens, uint64_t key, int64_t seq_length, int threads, bool shuffled) {
  require(seq_length > 0, "seq_length must be positive");
  Array<int64_t> starts(PackedDocuments::num_windows(tokens.file.num_documents()) + 1);
  int64_t* out = starts.mutable_data();
  py::gil_scoped_release release;
  PackedDocuments::starts(tokens.file, key, shuffled, seq_length, threads, out);
  return starts;
}

template <typename Documents>
void bind_epoch(py::module_& m, const char* name) {
  using E = Epoch<Documents>;
  py::class_<E>(m, name)
      // noconvert: another dtype would be copied, wrapped or truncated to this one without a word
      .def(py::init<const Tokens&, Array<int64_t>, uint64_t, uint64_t, int64_t, bool>(), py::arg("tokens"),
           py::arg("starts").noconvert(), py::arg("document_key"), py::arg("sample_key"), py::arg("seq_length"),
           py::arg("shuffled") = true)
      .def_property_readonly("num_samples", [](const E& epoch) { return epoch.documents.num_samples(); })
      .def("read", &E::read, py::arg("samples").noconvert(), py::arg("tokens").noconvert(), py::arg("labels").noconvert(),
           py::arg("mask").noconvert(), py::arg("documents").noconvert(), py::arg("vocab_size"))
      .def("count", &E::count, py::arg("samples").noconvert())
      .def("spans", &E::spans, py::arg("sample"));
}

template <typename T>
uint64_t checksum_of(const Array<T>& matrix, uint64_t first_row, uint64_t first_column) {
  require(matrix.ndim() == 2, "a checksum is of a matrix");
  const T* data = matrix.data();
  const auto rows = static_cast<size_t>(matrix.shape(0));
  const auto columns = static_cast<size_t>(matrix.shape(1));
  py::gil_scoped_release release;
  return checksum(data, rows, columns, first_row, first_column);
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "Kernels of cptron.data and cptron.corpus; see csrc/.";
  bind_corpus(m);
  bind_prose(m);
  py::class_<Permutation>(m, "Permutation")
      .def(py::init<uint64_t, uint64_t>(), py::arg("n"), py::arg("key"))
      .def("__len__", &Permutation::size)
      .def("__call__", [](const Permutation& permutation, uint64_t index) {
        if (index >= permutation.size()) throw std::out_of_range("index is outside the permutation");
        return permutation(index);
      });
  py::class_<Tokens>(m, "Tokens")
      .def(py::init<Bytes, Bytes, Bytes, int, Bytes, bool>(), py::arg("lengths").noconvert(), py::arg("pointers").noconvert(),
           py::arg("tokens").noconvert(), py::arg("token_bytes"), py::arg("learned").noconvert(),
           py::arg("mask_beginnings") = false)
      .def_property_readonly("num_documents", [](const Tokens& tokens) { return tokens.file.num_documents(); });
  bind_epoch<JoinedDocuments>(m, "JoinedEpoch");
  bind_epoch<PackedDocuments>(m, "PackedEpoch");
  m.def("checksum", &checksum_of<uint16_t>, py::arg("matrix").noconvert(), py::arg("first_row"), py::arg("first_column"));
  m.def("checksum", &checksum_of<uint32_t>, py::arg("matrix").noconvert(), py::arg("first_row"), py::arg("first_column"));
  m.def("joined_starts", &joined_starts, py::arg("tokens"), py::arg("key"), py::arg("threads"), py::arg("shuffled") = true);
  m.def("packed_starts", &packed_starts, py::arg("tokens"), py::arg("key"), py::arg("seq_length"), py::arg("threads"),
        py::arg("shuffled") = true);
  py::class_<Blend>(m, "Blend")
      .def(py::init<const std::vector<uint64_t>&, std::vector<int64_t>>(), py::arg("weights"), py::arg("counts"))
      .def_property_readonly("counts", &Blend::counts)
      .def("draw",
           [](Blend& blend, int64_t n) {
             require(n >= 0, "n must not be negative");
             Array<int32_t> sources(n);
             Array<int64_t> numbers(n);
             int32_t* source = sources.mutable_data();
             int64_t* number = numbers.mutable_data();
             {
               py::gil_scoped_release release;
               blend.draw(n, source, number);
             }
             return std::make_pair(std::move(sources), std::move(numbers));
           },
           py::arg("n"));
}
