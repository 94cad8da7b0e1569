// Python bindings of the kernels of single documents: counts of prose, repeated n-grams, an automaton over bytes.

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "automaton.h"
#include "corpus_module.h"
#include "prose.h"

namespace py = pybind11;
using namespace cptron;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Rules = std::vector<std::pair<int64_t, double>>;  // n, and the share of a text's characters that is too much

void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(rule);
}

std::u32string text_of(const Array<uint32_t>& points) {
  return {points.data(), points.data() + points.size()};
}

CharacterKinds kinds_of(const Array<uint8_t>& kinds) { return {kinds.data(), static_cast<size_t>(kinds.size())}; }

class Counter {
 public:
  Counter(Array<uint8_t> kinds, std::vector<std::u32string> stop_words)
      : kinds_(std::move(kinds)), words_(std::move(stop_words)), stop_words_(words_.begin(), words_.end()) {}
  Counter(const Counter&) = delete;  // `stop_words_` looks into `words_`
  Counter& operator=(const Counter&) = delete;

  std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> operator()(const Array<uint32_t>& points) const {
    const ProseCounts found = count_prose(kinds_of(kinds_), text_of(points), stop_words_);
    return {found.words, found.plain_words, found.plain_characters, found.lettered_words, found.stop_words};
  }

 private:
  Array<uint8_t> kinds_;
  std::vector<std::u32string> words_;
  StopWords stop_words_;
};

// The first rule that the text breaks, of those for the commonest n-gram and then those for repeated ones; -1 for none.
int64_t broken_rule(const Array<uint32_t>& points, const Array<uint8_t>& kinds, const Rules& commonest, const Rules& repeated) {
  for (const Rules* rules : {&commonest, &repeated}) {
    for (const auto& [n, most] : *rules) require(n >= 1, "an n-gram has at least one word");
  }
  const std::u32string text = text_of(points);
  py::gil_scoped_release release;
  NGrams grams(kinds_of(kinds), text);
  int64_t number = 0;
  const auto too_much = [&](uint64_t characters, double most) {
    return static_cast<double>(characters) / static_cast<double>(text.size()) > most;
  };
  for (const auto& [n, most] : commonest) {
    if (too_much(grams.commonest(static_cast<size_t>(n)), most)) return number;
    ++number;
  }
  for (const auto& [n, most] : repeated) {
    if (too_much(grams.repeated(static_cast<size_t>(n)), most)) return number;
    ++number;
  }
  return -1;
}

struct Reader {
  Reader(Array<uint32_t> moves_, Array<int32_t> rows_, Array<int32_t> features_)
      : moves(std::move(moves_)),
        rows(std::move(rows_)),
        features(std::move(features_)),
        automaton((require(rows.size() == features.size(), "one row and one feature a state"), moves.data()),
                  static_cast<size_t>(moves.size()), rows.data(), features.data(), static_cast<size_t>(rows.size())) {}

  std::pair<Array<int64_t>, Array<float>> visits(const py::bytes& text) {
    const std::string_view bytes = text;
    automaton.read(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    const auto size = static_cast<py::ssize_t>(automaton.order().size());
    Array<int64_t> order(size, automaton.order().data());
    Array<float> times(size);
    float* out = times.mutable_data();
    for (const int64_t feature : automaton.order()) *out++ = static_cast<float>(automaton.times(feature));
    return {std::move(order), std::move(times)};
  }

  Array<uint32_t> moves;
  Array<int32_t> rows, features;
  Automaton automaton;
};

}  // namespace

void bind_prose(py::module_& m) {
  py::class_<Counter>(m, "ProseCounter")
      .def(py::init<Array<uint8_t>, std::vector<std::u32string>>(), py::arg("kinds").noconvert(), py::arg("stop_words"))
      .def("__call__", &Counter::operator(), py::arg("text").noconvert());
  m.def("broken_rule", &broken_rule, py::arg("text").noconvert(), py::arg("kinds").noconvert(), py::arg("commonest"),
        py::arg("repeated"));
  py::class_<Reader>(m, "Automaton")
      .def(py::init<Array<uint32_t>, Array<int32_t>, Array<int32_t>>(), py::arg("moves").noconvert(), py::arg("rows").noconvert(),
           py::arg("features").noconvert())
      .def("visits", &Reader::visits, py::arg("text"));
}
