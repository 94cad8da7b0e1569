// Clusters of near-duplicates: candidates that share a band are compared by the exact Jaccard index of their sets, and joined where
// it reaches the threshold. Sets are read from their files when they are needed, so memory holds 4 bytes a document and one bucket.
//
// Documents are numbered through all files. Where no limit cut comparisons short the clusters are the connected components of
// "candidates, and similar", whatever the order in which bands and buckets come.

#pragma once

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace cptron {

// Where a file keeps its sets: document i has the hashes starts[i] to starts[i + 1].
struct SetFile {
  int descriptor;
  uint64_t documents;
  uint64_t hashes;     // in all sets
  uint64_t starts_at;  // bytes from the beginning of the file; [documents + 1] of 8 bytes
  uint64_t hashes_at;  // of 4 bytes each
};

inline void read_at(int descriptor, void* out, uint64_t bytes, uint64_t at) {
  auto* next = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = pread(descriptor, next, bytes, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw std::runtime_error(got < 0 ? std::strerror(errno) : "the file of sets ends too early");
    next += got;
    at += static_cast<uint64_t>(got);
    bytes -= static_cast<uint64_t>(got);
  }
}

inline uint64_t shared_hashes(const std::vector<uint32_t>& left, const std::vector<uint32_t>& right) {
  uint64_t shared = 0;
  size_t i = 0, j = 0;
  while (i < left.size() && j < right.size()) {
    const uint32_t a = left[i], b = right[j];
    shared += a == b;
    i += a <= b;
    j += b <= a;
  }
  return shared;
}

struct Edge {  // of two documents that were found similar
  uint64_t left, right, shared, together;
};

struct JoinCounts {
  uint64_t candidates = 0;   // documents in buckets of two or more
  uint64_t comparisons = 0;  // sets compared
  uint64_t similar = 0;      // of those, at or over the threshold
  uint64_t cut = 0;          // documents that were not compared with all others of their bucket
};

class Clusters {
 public:
  // `fixed` documents at the beginning are never compared with each other. The threshold is in millionths.
  Clusters(std::vector<SetFile> files, uint64_t fixed, uint64_t threshold_ppm, uint64_t most_comparisons)
      : files_(std::move(files)), fixed_(fixed), threshold_ppm_(threshold_ppm), most_comparisons_(most_comparisons) {
    uint64_t total = 0;
    for (const SetFile& file : files_) {
      first_.push_back(total);
      total += file.documents;
    }
    if (total > UINT32_MAX) throw std::invalid_argument("more than 2^32 - 1 documents");
    parents_.resize(total);
    for (uint64_t i = 0; i < total; ++i) parents_[i] = static_cast<uint32_t>(i);
  }

  uint64_t size() const { return parents_.size(); }

  // The smallest document of the cluster.
  uint64_t find(uint64_t document) {
    while (parents_[document] != document) document = parents_[document] = parents_[parents_[document]];
    return document;
  }

  // One band, or a part of it: `keys` are sorted, equal ones are candidates.
  JoinCounts join(const uint64_t* keys, const uint32_t* documents, size_t n, std::vector<Edge>& edges) {
    JoinCounts counts;
    for (size_t begin = 0, end; begin < n; begin = end) {
      for (end = begin + 1; end < n && keys[end] == keys[begin];) ++end;
      if (end - begin > 1) bucket(documents + begin, end - begin, counts, edges);
    }
    return counts;
  }

 private:
  static constexpr uint64_t kMostCached = uint64_t{1} << 24;  // hashes of one bucket in memory: 64 MiB
  using Set = std::shared_ptr<const std::vector<uint32_t>>;

  struct Member {
    uint64_t size, document;
  };

  std::pair<uint64_t, uint64_t> extent(uint64_t document, const SetFile*& file) const {
    const auto after = std::upper_bound(first_.begin(), first_.end(), document);
    const auto number = static_cast<size_t>(after - first_.begin()) - 1;
    file = &files_[number];
    uint64_t bounds[2];
    read_at(file->descriptor, bounds, sizeof bounds, file->starts_at + 8 * (document - first_[number]));
    if (bounds[1] < bounds[0] || bounds[1] > file->hashes) throw std::runtime_error("the file of sets is damaged");
    return {bounds[0], bounds[1] - bounds[0]};
  }

  Set set_of(uint64_t document) {
    const auto found = cache_.find(document);
    if (found != cache_.end()) return found->second;
    const SetFile* file = nullptr;
    const auto [start, size] = extent(document, file);
    auto hashes = std::make_shared<std::vector<uint32_t>>(size);
    read_at(file->descriptor, hashes->data(), 4 * size, file->hashes_at + 4 * start);
    if (cached_ + size > kMostCached) clear_cache();
    cached_ += size;
    cache_[document] = hashes;
    return hashes;
  }

  void clear_cache() {
    cache_.clear();
    cached_ = 0;
  }

  bool similar(uint64_t shared, uint64_t together) const { return shared * 1000000 >= threshold_ppm_ * together; }

  void bucket(const uint32_t* documents, size_t n, JoinCounts& counts, std::vector<Edge>& edges) {
    counts.candidates += n;
    if (all_joined(documents, n)) return;
    std::vector<Member> members(n);
    for (size_t i = 0; i < n; ++i) {
      const SetFile* file = nullptr;
      members[i] = {extent(documents[i], file).second, documents[i]};
    }
    std::sort(members.begin(), members.end(), [](const Member& a, const Member& b) {
      return a.size != b.size ? a.size < b.size : a.document < b.document;
    });
    Groups groups;
    for (const Member& member : members) place(member, groups, counts, edges);
    clear_cache();
  }

  bool all_joined(const uint32_t* documents, size_t n) {
    for (size_t i = 1; i < n; ++i) {
      if (find(documents[i]) != find(documents[0])) return false;
    }
    return true;
  }

  // Members of one cluster. Fixed ones are apart: they are nothing to each other, so one of them need not look at the rest.
  struct Group {
    std::vector<Member> fixed, others;

    bool empty() const { return fixed.empty() && others.empty(); }
    uint64_t any() const { return (others.empty() ? fixed : others).front().document; }
    void take(Group& group) {
      for (const auto part : {&Group::fixed, &Group::others}) {
        if ((this->*part).size() < (group.*part).size()) (this->*part).swap(group.*part);
        (this->*part).insert((this->*part).end(), (group.*part).begin(), (group.*part).end());
      }
    }
  };
  struct Groups {
    std::vector<Group> fixed, others;  // those with none but fixed members, and the rest
  };

  // Compares a member with groups that it is not in yet, the nearest in size first, until one of each is similar; joins those.
  void place(const Member& member, Groups& groups, JoinCounts& counts, std::vector<Edge>& edges) {
    const bool is_fixed = member.document < fixed_;
    Group own;
    uint64_t left = most_comparisons_;
    gather(member, groups.others, groups, own, left, counts, edges);
    if (!is_fixed) gather(member, groups.fixed, groups, own, left, counts, edges);
    if (left == 0) ++counts.cut;
    (is_fixed ? own.fixed : own.others).push_back(member);
    (own.others.empty() ? groups.fixed : groups.others).push_back(std::move(own));
  }

  // Moves those groups of `from` that the member belongs to into `own`. Members come by size, and what is too small for one is too
  // small for all that follow: it goes. So a bucket costs no more than its size times `most_comparisons_`.
  void gather(const Member& member, std::vector<Group>& from, Groups& groups, Group& own, uint64_t& left, JoinCounts& counts,
              std::vector<Edge>& edges) {
    for (size_t g = from.size(); g-- > 0 && left > 0;) {
      Group group = std::move(from[g]);
      if (find(group.any()) == find(member.document) || reaches(member, group, left, counts, edges)) {
        own.take(group);
      } else if (!group.others.empty() || (&from == &groups.fixed && !group.empty())) {
        from[g] = std::move(group);
        continue;
      } else if (!group.empty()) {
        groups.fixed.push_back(std::move(group));
      }
      if (g + 1 < from.size()) from[g] = std::move(from.back());
      from.pop_back();
    }
  }

  bool reaches(const Member& member, Group& group, uint64_t& left, JoinCounts& counts, std::vector<Edge>& edges) {
    if (reaches(member, group.others, left, counts, edges)) return true;
    return member.document >= fixed_ && reaches(member, group.fixed, left, counts, edges);
  }

  // Whether one of `members` is similar; those that are too small are taken out.
  bool reaches(const Member& member, std::vector<Member>& members, uint64_t& left, JoinCounts& counts, std::vector<Edge>& edges) {
    for (size_t i = members.size(); i-- > 0 && left > 0;) {
      const Member other = members[i];
      if (!similar(other.size, member.size)) {  // the larger set alone keeps them apart
        members[i] = members.back();
        members.pop_back();
        continue;
      }
      ++counts.comparisons;
      const uint64_t shared = shared_hashes(*set_of(other.document), *set_of(member.document));
      const uint64_t together = other.size + member.size - shared;
      if (similar(shared, together)) {
        ++counts.similar;
        unite(other.document, member.document);
        edges.push_back({std::min(other.document, member.document), std::max(other.document, member.document), shared, together});
        return true;
      }
      --left;
    }
    return false;
  }

  void unite(uint64_t a, uint64_t b) {
    a = find(a);
    b = find(b);
    if (a > b) std::swap(a, b);
    parents_[b] = static_cast<uint32_t>(a);
  }

  std::vector<SetFile> files_;
  uint64_t fixed_, threshold_ppm_, most_comparisons_;
  std::vector<uint64_t> first_;
  std::vector<uint32_t> parents_;
  std::unordered_map<uint64_t, Set> cache_;
  uint64_t cached_ = 0;
};

}  // namespace cptron
