// A finite automaton over bytes that counts features, as language identifiers use it: from state to state by each byte, and a feature, or
// none, for each state that is reached. The tables are the caller's, who keeps them alive.

#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace cptron {

class Automaton {
 public:
  // State s goes with byte b to moves[rows[s] * 256 + b]; features[s] is negative for none.
  Automaton(const uint32_t* moves, size_t num_moves, const int32_t* rows, const int32_t* features, size_t num_states)
      : moves_(moves), rows_(rows), features_(features) {
    if (num_states == 0) throw std::invalid_argument("an automaton has a state at least");
    for (size_t s = 0; s < num_states; ++s) {
      if (rows[s] < 0 || (static_cast<size_t>(rows[s]) + 1) * 256 > num_moves) throw std::invalid_argument("a row is outside the moves");
    }
    for (size_t i = 0; i < num_moves; ++i) {
      if (moves[i] >= num_states) throw std::invalid_argument("a move leads to no state");
    }
    int32_t last = -1;
    for (size_t s = 0; s < num_states; ++s) last = features[s] > last ? features[s] : last;
    times_.assign(static_cast<size_t>(last) + 1, 0);
  }

  // Features in the order in which they are first reached, and how often each is; valid until the next call.
  void read(const uint8_t* text, size_t bytes) {
    for (const int64_t feature : order_) times_[static_cast<size_t>(feature)] = 0;
    order_.clear();
    size_t state = 0;
    for (size_t i = 0; i < bytes; ++i) {
      state = moves_[static_cast<size_t>(rows_[state]) * 256 + text[i]];
      const int32_t feature = features_[state];
      if (feature >= 0 && times_[static_cast<size_t>(feature)]++ == 0) order_.push_back(feature);
    }
  }

  const std::vector<int64_t>& order() const { return order_; }
  uint32_t times(int64_t feature) const { return times_[static_cast<size_t>(feature)]; }

 private:
  const uint32_t* moves_;
  const int32_t *rows_, *features_;
  std::vector<uint32_t> times_;
  std::vector<int64_t> order_;
};

}  // namespace cptron
