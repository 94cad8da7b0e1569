// Which source each sample of a blend comes from, so that every source is within one sample of its share at every prefix.
//
// The chairman assignment problem and its solution: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32
// (1980). With k sources of shares w_i / W and K = 2k - 2, the m-th sample of source i must lie in the places
//   first = ceil(((m - 1) K + 1) W / (K w_i))   to   last = floor((m K - 1) W / (K w_i)) + 1        (places count from 1),
// which keeps |drawn_i - n w_i / W| <= 1 - 1/K after every n samples. Taking, at every place, the sample that must come soonest
// among those that may come meets all of these windows (earliest deadline first is optimal for unit jobs); ties go to the
// source that is named first. So the choice is a function of how many samples of each source were drawn, and of nothing else.

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace cptron {

class Blend {
 public:
  static constexpr uint64_t kLargestSum = uint64_t{1} << 48;  // of weights; keeps K * w within 63 bits for 16,384 sources
  static constexpr size_t kMostSources = 16384;

  // Stands where `counts` samples of each source were drawn.
  Blend(const std::vector<uint64_t>& weights, std::vector<int64_t> counts)
      : counts_(std::move(counts)), queue_(weights.size()) {
    if (weights.empty() || weights.size() > kMostSources) throw std::invalid_argument("blend: 1 to 16384 sources");
    if (weights.size() != counts_.size()) throw std::invalid_argument("blend: one weight and one count a source");
    uint64_t sum = 0;
    for (uint64_t weight : weights) {
      if (weight == 0 || weight > kLargestSum) throw std::invalid_argument("blend: weights must be in [1, 2^48]");
      sum += weight;
    }
    if (sum > kLargestSum) throw std::invalid_argument("blend: the weights must sum to 2^48 at most");
    for (size_t i = 0; i < weights.size(); ++i) {
      if (counts_[i] < 0) throw std::invalid_argument("blend: counts must not be negative");
      drawn_ += counts_[i];
      if (weights.size() > 1) jobs_.emplace_back(weights[i], sum, 2 * weights.size() - 2, counts_[i]);
    }
  }

  const std::vector<int64_t>& counts() const { return counts_; }

  // The sources of the next n samples, and which sample of its source each is, counted like `counts`.
  void draw(int64_t n, int32_t* sources, int64_t* numbers) {
    if (jobs_.empty()) {
      std::fill(sources, sources + n, 0);
      for (int64_t i = 0; i < n; ++i) numbers[i] = counts_[0]++;
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      if (queue_.at_end()) queue_.begin_block(jobs_, drawn_ + 1);
      const int32_t source = queue_.next(jobs_);
      sources[i] = source;
      numbers[i] = counts_[source]++;
      ++drawn_;
    }
  }

 private:
  static constexpr int64_t kBlock = 4096;  // places planned at once: two levels of 64-bit sets

  // The next sample of a source: the places where it may be, exactly, as fractions over K * w.
  struct Job {
    Job(uint64_t weight, uint64_t sum, uint64_t k, int64_t count)
        : step(static_cast<int64_t>(sum / weight)), step_rest((sum % weight) * k), unit(k * weight) {
      using Wide = unsigned __int128;
      const Wide opens = (static_cast<Wide>(count) * k + 1) * sum;
      const Wide closes = (static_cast<Wide>(count) * k + k - 1) * sum;
      first = static_cast<int64_t>((opens - 1) / unit) + 1;
      first_rest = static_cast<uint64_t>((opens - 1) % unit) + 1;
      last = static_cast<int64_t>(closes / unit) + 1;
      last_rest = static_cast<uint64_t>(closes % unit);
    }

    void advance() {  // without branches: whether a rest overflows is as good as random
      first_rest += step_rest;
      const bool first_over = first_rest > unit;
      first_rest -= first_over ? unit : 0;
      first += step + first_over;
      last_rest += step_rest;
      const bool last_over = last_rest >= unit;
      last_rest -= last_over ? unit : 0;
      last += step + last_over;
    }

    int64_t first;
    int64_t last;
    uint64_t first_rest;  // how far the fraction is above `first` - 1; in (0, unit]
    uint64_t last_rest;   // how far the fraction is above `last` - 1; in [0, unit)
    int64_t step;         // from one sample to the next: W / w, whole part
    uint64_t step_rest;   // and rest
    uint64_t unit;        // K * w
  };

  // The block of places [begin, begin + kBlock): jobs wait in a list at their first place, then in a list at their last one; a set of 64 x 64
  // bits finds the soonest last place. Jobs whose last place is beyond the block are in a heap.
  class Queue {
    using Link = int16_t;  // a source; small, so that the lists stay in the nearest cache

   public:
    explicit Queue(size_t num_sources) : next_(num_sources, kNone), opens_(kBlock, kNone), closes_(kBlock, kNone) {}

    bool at_end() const { return place_ == kBlock; }

    // Begin the block whose first place is `begin`: what is still open is entered again.
    void begin_block(const std::vector<Job>& jobs, int64_t begin) {
      begin_ = begin;
      place_ = 0;
      later_.clear();
      clear();
      for (size_t source = 0; source < jobs.size(); ++source) enter(jobs, static_cast<Link>(source));
    }

    // The source of the next place.
    int32_t next(std::vector<Job>& jobs) {
      for (Link source = opens_[place_]; source != kNone;) {
        const Link following = next_[source];
        close(jobs[source].last, source);
        source = following;
      }
      opens_[place_] = kNone;
      const Link chosen = take();
      jobs[chosen].advance();
      ++place_;
      enter(jobs, chosen);
      return chosen;
    }

   private:
    static constexpr Link kNone = -1;

    // Put the next job of a source where it belongs.
    void enter(const std::vector<Job>& jobs, Link source) {
      const int64_t opens = jobs[source].first - begin_;
      if (opens >= kBlock || at_end()) return;
      if (opens <= place_) {
        close(jobs[source].last, source);
      } else {
        next_[source] = opens_[opens];
        opens_[opens] = source;
      }
    }

    void close(int64_t last, Link source) {
      const int64_t place = last - begin_;
      if (place < 0) throw std::logic_error("blend: a deadline was missed");
      if (place >= kBlock) {
        later_.emplace_back(last, source);
        std::push_heap(later_.begin(), later_.end(), std::greater<>());
        return;
      }
      Link* link = &closes_[place];
      while (*link != kNone && *link < source) link = &next_[*link];
      next_[source] = *link;
      *link = source;
      words_[place >> 6] |= uint64_t{1} << (place & 63);
      summary_ |= uint64_t{1} << (place >> 6);
    }

    Link take() {
      if (summary_ != 0) {
        const int64_t word = __builtin_ctzll(summary_);
        const int64_t closing = word * 64 + __builtin_ctzll(words_[word]);
        if (closing < place_) throw std::logic_error("blend: a deadline was missed");
        const Link source = closes_[closing];
        closes_[closing] = next_[source];
        if (closes_[closing] == kNone) {
          words_[word] &= words_[word] - 1;
          if (words_[word] == 0) summary_ &= summary_ - 1;
        }
        return source;
      }
      if (later_.empty()) throw std::logic_error("blend: a place without a sample");
      std::pop_heap(later_.begin(), later_.end(), std::greater<>());
      const Link source = later_.back().second;
      later_.pop_back();
      return source;
    }

    // What is still open at the end of the block is entered again in the next one.
    void clear() {
      for (int64_t word = 0; word < 64; ++word) {
        while (words_[word] != 0) {
          closes_[word * 64 + __builtin_ctzll(words_[word])] = kNone;
          words_[word] &= words_[word] - 1;
        }
      }
      summary_ = 0;
    }

    std::vector<Link> next_;
    std::vector<Link> opens_;
    std::vector<Link> closes_;
    std::vector<std::pair<int64_t, Link>> later_;
    uint64_t words_[64] = {};
    uint64_t summary_ = 0;
    int64_t begin_ = 0;
    int64_t place_ = kBlock;
  };

  std::vector<int64_t> counts_;
  std::vector<Job> jobs_;
  Queue queue_;
  int64_t drawn_ = 0;
};

}  // namespace cptron
