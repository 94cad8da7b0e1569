// Python bindings of the kernels of cptron.corpus: shingle sets, signatures, clusters, contamination. Texts come as one array of bytes and
// the offsets of the documents in it. The interpreter lock is released while work is done.

#include "corpus_module.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "clusters.h"
#include "contamination.h"
#include "minhash.h"
#include "words.h"

namespace py = pybind11;
using namespace cptron;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(rule);
}

template <typename T>
Array<T> array_of(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Documents i of an array: elements starts[i] to starts[i + 1].
template <typename T>
struct Pieces {
  Pieces(const Array<T>& all, const Array<int64_t>& starts) : data(all.data()), bounds(starts.data()), n(starts.size() - 1) {
    require(all.ndim() == 1 && starts.ndim() == 1 && starts.size() >= 1, "data and starts must be rows of numbers");
    require(bounds[0] == 0 && bounds[n] == all.size(), "starts must begin with 0 and end with the length of the data");
    for (int64_t i = 0; i < n; ++i) require(bounds[i] <= bounds[i + 1], "starts must not fall");
  }
  const T* begin(int64_t i) const { return data + bounds[i]; }
  const T* end(int64_t i) const { return data + bounds[i + 1]; }

  const T* data;
  const int64_t* bounds;
  int64_t n;
};

std::tuple<Array<uint32_t>, Array<int64_t>, Array<int64_t>> shingle_sets(const Array<uint8_t>& text,
                                                                        const Array<int64_t>& starts,
                                                                        const Array<uint32_t>& folding, int64_t size,
                                                                        bool characters) {
  require(size >= 1, "a shingle has at least one word");
  const Pieces<uint8_t> documents(text, starts);
  ShingleSet set_of({folding.data(), static_cast<size_t>(folding.size())}, static_cast<size_t>(size), characters);
  std::vector<uint32_t> sets;
  std::vector<int64_t> set_starts{0}, words;
  {
    py::gil_scoped_release release;
    for (int64_t i = 0; i < documents.n; ++i) {
      const std::vector<uint32_t>& set = set_of(documents.begin(i), documents.end(i));
      sets.insert(sets.end(), set.begin(), set.end());
      set_starts.push_back(static_cast<int64_t>(sets.size()));
      words.push_back(static_cast<int64_t>(set_of.num_words()));
    }
  }
  return {array_of(sets), array_of(set_starts), array_of(words)};
}

Minima variant_of(const std::string& name) {
  const auto variants = minima_variants();
  if (name.empty()) return variants.back().second;
  for (const auto& [known, minima] : variants) {
    if (known == name) return minima;
  }
  throw std::invalid_argument("no such variant on this machine");
}

Array<uint32_t> signatures(const Array<uint32_t>& sets, const Array<int64_t>& starts, const Array<uint32_t>& multipliers,
                           const Array<uint32_t>& addends, const std::string& variant) {
  require(multipliers.ndim() == 1 && addends.ndim() == 1 && multipliers.size() == addends.size(),
          "multipliers and addends must be rows of the same length");
  const Pieces<uint32_t> documents(sets, starts);
  const auto permutations = multipliers.size();
  Signatures sign(multipliers.data(), addends.data(), static_cast<size_t>(permutations), variant_of(variant));
  Array<uint32_t> found({static_cast<py::ssize_t>(documents.n), permutations});
  uint32_t* out = found.mutable_data();
  py::gil_scoped_release release;
  for (int64_t i = 0; i < documents.n; ++i) {
    sign(documents.begin(i), static_cast<size_t>(documents.end(i) - documents.begin(i)), out + i * permutations);
  }
  return found;
}

Array<uint64_t> band_keys(const Array<uint32_t>& signatures, int64_t rows) {
  require(signatures.ndim() == 2 && rows >= 1 && signatures.shape(1) % rows == 0, "signatures must be [n, bands * rows]");
  const int64_t n = signatures.shape(0), permutations = signatures.shape(1), bands = permutations / rows;
  Array<uint64_t> keys({bands, n});
  const uint32_t* in = signatures.data();
  uint64_t* out = keys.mutable_data();
  py::gil_scoped_release release;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t band = 0; band < bands; ++band) {
      out[band * n + i] = band_key(in + i * permutations + band * rows, static_cast<size_t>(rows), static_cast<uint64_t>(band));
    }
  }
  return keys;
}

using Joined = std::tuple<py::dict, Array<uint64_t>>;

Joined join(Clusters& clusters, const Array<uint64_t>& keys, const Array<uint32_t>& documents) {
  require(keys.ndim() == 1 && documents.ndim() == 1 && keys.size() == documents.size(), "one document a key");
  const uint64_t* key = keys.data();
  const uint32_t* document = documents.data();
  const auto n = static_cast<size_t>(keys.size());
  for (size_t i = 0; i < n; ++i) require(document[i] < clusters.size(), "a document is outside the files");
  JoinCounts counts;
  std::vector<Edge> edges;
  {
    py::gil_scoped_release release;
    counts = clusters.join(key, document, n, edges);
  }
  py::dict named;
  named["candidates"] = counts.candidates;
  named["comparisons"] = counts.comparisons;
  named["similar"] = counts.similar;
  named["cut"] = counts.cut;
  Array<uint64_t> pairs({static_cast<py::ssize_t>(edges.size()), py::ssize_t{4}});
  uint64_t* out = pairs.mutable_data();
  for (const Edge& edge : edges) {
    for (const uint64_t value : {edge.left, edge.right, edge.shared, edge.together}) *out++ = value;
  }
  return {std::move(named), std::move(pairs)};
}

using Place = std::tuple<int, uint64_t, uint64_t, uint64_t, uint64_t>;

std::vector<SetFile> files_of(const std::vector<Place>& places) {
  std::vector<SetFile> files;
  for (const auto& [descriptor, documents, hashes, starts_at, hashes_at] : places) {
    files.push_back({descriptor, documents, hashes, starts_at, hashes_at});
  }
  return files;
}

Array<int64_t> find_matches(const Contamination& index, const Array<uint8_t>& text, const Array<int64_t>& starts) {
  require(index.is_finished(), "finish_adding comes before find");
  const Pieces<uint8_t> documents(text, starts);
  std::vector<int64_t> rows;
  {
    py::gil_scoped_release release;
    std::vector<Match> matches;
    for (int64_t i = 0; i < documents.n; ++i) {
      matches.clear();
      index.find(documents.begin(i), static_cast<size_t>(documents.end(i) - documents.begin(i)), matches);
      for (const Match& match : matches) {
        for (const int64_t value : {i, match.begin, match.end, match.item, match.item_word}) rows.push_back(value);
      }
    }
  }
  return array_of(rows).reshape({static_cast<py::ssize_t>(rows.size() / 5), py::ssize_t{5}});
}

void bind_contamination(py::module_& m) {
  py::class_<Contamination>(m, "Contamination")
      .def(py::init([](const Array<uint32_t>& folding, int64_t size, int64_t shortest) {
             require(size >= 1 && shortest >= 1, "runs have at least one word");
             return std::make_unique<Contamination>(std::vector<uint32_t>(folding.data(), folding.data() + folding.size()),
                                                    static_cast<size_t>(size), static_cast<size_t>(shortest));
           }),
           py::arg("folding").noconvert(), py::arg("size"), py::arg("shortest"))
      .def("add",
           [](Contamination& index, const Array<uint8_t>& text, const Array<int64_t>& starts) {
             const Pieces<uint8_t> items(text, starts);
             std::vector<int64_t> words;
             for (int64_t i = 0; i < items.n; ++i) {
               words.push_back(static_cast<int64_t>(index.add(items.begin(i), static_cast<size_t>(items.end(i) - items.begin(i)))));
             }
             return array_of(words);
           },
           py::arg("text").noconvert(), py::arg("starts").noconvert())
      .def("finish_adding", &Contamination::finish_adding)
      .def_property_readonly("num_runs", &Contamination::num_runs)
      .def("find", &find_matches, py::arg("text").noconvert(), py::arg("starts").noconvert());
}

}  // namespace

void bind_corpus(py::module_& m) {
  m.def("shingle_sets", &shingle_sets, py::arg("text").noconvert(), py::arg("starts").noconvert(),
        py::arg("folding").noconvert(), py::arg("size"), py::arg("characters"));
  m.def("signature_variants", [] {
    std::vector<std::string> names;
    for (const auto& variant : minima_variants()) names.push_back(variant.first);
    return names;
  });
  m.def("signatures", &signatures, py::arg("sets").noconvert(), py::arg("starts").noconvert(),
        py::arg("multipliers").noconvert(), py::arg("addends").noconvert(), py::arg("variant") = "");
  m.def("band_keys", &band_keys, py::arg("signatures").noconvert(), py::arg("rows"));
  py::class_<Clusters>(m, "Clusters")
      .def(py::init([](const std::vector<Place>& files, uint64_t fixed, uint64_t threshold_ppm,
                       uint64_t most_comparisons) {
             return std::make_unique<Clusters>(files_of(files), fixed, threshold_ppm, most_comparisons);
           }),
           py::arg("files"), py::arg("fixed"), py::arg("threshold_ppm"), py::arg("most_comparisons"))
      .def("join", &join, py::arg("keys").noconvert(), py::arg("documents").noconvert())
      .def("roots",
           [](Clusters& clusters, uint64_t begin, uint64_t end) {
             require(begin <= end && end <= clusters.size(), "the range is outside the files");
             std::vector<uint32_t> found;
             for (uint64_t i = begin; i < end; ++i) found.push_back(static_cast<uint32_t>(clusters.find(i)));
             return array_of(found);
           },
           py::arg("begin"), py::arg("end"));
  bind_contamination(m);
}
