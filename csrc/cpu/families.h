// The samples of a packed batch by families, a parent and its children: the order of the work on them and its costs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "types.h"

namespace cora::cpu {

// What it costs to pack a sample beside its products, in keys. Samples are shared out among threads by that.
constexpr int64_t kPackingCost = 128;

struct Member {
  int64_t sample;
  int64_t parent;  // -1: none
  bool is_parent;
  int64_t cost;
};

// The longest sample, the longest that is a parent, and the most keys that a query can see.
struct Longest {
  int64_t own = 0, prefix = 0, keys = 0;
};

struct Families {
  using Range = std::pair<const Member*, const Member*>;

  // Every family together, the parent first, then its children in their order.
  std::vector<Member> members;
  // Where in that the families begin, the end included.
  std::vector<int64_t> begins;
  Longest longest;
  int64_t total_cost = 0;

  // parents [B] or null: no sample has one.
  Families(const Segments& segments, const int32_t* parents) : members(segments.batch) {
    const auto parent = [&](int64_t sample) -> int64_t { return parents ? parents[sample] : -1; };
    std::vector<int64_t> children(segments.batch), place(segments.batch);
    for (int64_t sample = 0; sample < segments.batch; ++sample)
      if (parent(sample) >= 0) ++children[parent(sample)];
    int64_t end = 0;
    for (int64_t sample = 0; sample < segments.batch; ++sample) {
      if (parent(sample) >= 0) continue;
      begins.push_back(end);
      place[sample] = end;
      end += 1 + children[sample];
    }
    begins.push_back(end);
    std::vector<int64_t> next = place;
    for (int64_t sample = 0; sample < segments.batch; ++sample) {
      const bool is_parent = children[sample] > 0;
      const int64_t at = parent(sample) < 0 ? place[sample] : ++next[parent(sample)];
      members[at] = measured({sample, parent(sample), is_parent, 0}, segments);
    }
  }

  int64_t count() const { return begins.size() - 1; }
  Range family(int64_t i) const { return {members.data() + begins[i], members.data() + begins[i + 1]}; }
  Range member(int64_t i) const { return {members.data() + i, members.data() + i + 1}; }

  static int64_t cost(const Range& range) {
    int64_t sum = 0;
    for (const Member* member = range.first; member != range.second; ++member)
      sum += member->cost;
    return sum;
  }

 private:
  Member measured(Member member, const Segments& segments) {
    const int64_t own = segments.end(member.sample) - segments.begin(member.sample);
    const int64_t prefix = member.parent < 0 ? 0 : segments.end(member.parent) - segments.begin(member.parent);
    member.cost = own * (prefix + own + kPackingCost);
    total_cost += member.cost;
    longest.own = std::max(longest.own, own);
    longest.keys = std::max(longest.keys, prefix + own);
    if (member.is_parent) longest.prefix = std::max(longest.prefix, own);
    return member;
  }
};

}  // namespace cora::cpu
