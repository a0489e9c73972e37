#include "gimli/hypergradient/replay_schedule.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

namespace gimli {
namespace {

using enum ReplayAction::Kind;

/// `rule` says of `length` > 1 steps where to cut them, with the rules for what lies before and after.
template <class Rule>
struct Cut {
  int64_t length;
  Rule before, after;
};

/// To reverse several steps: keep their first state, advance to the cut, reverse what follows, then what precedes.
template <class Rule>
std::vector<ReplayAction> plan_by(const ReplaySchedule& schedule, const Rule& whole, int64_t steps) {
  TORCH_CHECK(steps >= 0, schedule.name(), ": expected 0 steps or more, got ", steps);
  struct Range {
    int64_t begin, end;
    bool kept;
    Rule rule;
  };
  std::vector<ReplayAction> plan;
  std::vector<Range> ranges;
  if (steps > 0) ranges.push_back({0, steps, false, whole});
  while (!ranges.empty()) {
    const auto [begin, end, kept, rule] = ranges.back();
    ranges.pop_back();
    if (kept) plan.push_back({restore, begin});
    if (end - begin == 1) {
      if (kept) plan.push_back({drop, begin});
      plan.push_back({reverse, begin});
      continue;
    }
    if (!kept) plan.push_back({store, begin});
    const Cut<Rule> cut = rule.cut(end - begin);
    const auto middle = begin + cut.length;
    plan.push_back({advance, middle});
    ranges.push_back({begin, middle, true, cut.before});
    ranges.push_back({middle, end, false, cut.after});
  }
  return plan;
}

struct Segments {
  int64_t length;

  Cut<Segments> cut(int64_t steps) const { return {steps > length ? length : 1, *this, *this}; }
};

/// Keeps beta(s, r - 1) <= steps <= beta(s, r), and so do the two parts. Every cut that does is optimal: there the
/// slopes of m + t(m, s) and t(steps - m, s - 1) are r, both.
struct Revolve {
  int64_t s, r, beta;  // beta(s, r - 1)

  Cut<Revolve> cut(int64_t steps) const {
    const auto beta_after = beta * s / (s + r - 1);
    return {std::min(beta, steps - beta_after), {s, r - 1, beta - beta_after}, {s - 1, r, beta_after}};
  }
};

struct Parts {
  int64_t arity, left;

  Cut<Parts> cut(int64_t steps) const {
    const auto parts = std::min(left, steps);
    return {steps / parts, {arity, arity}, {arity, parts > 2 ? parts - 1 : arity}};
  }
};

std::string text(const ReplayAction& action) {
  constexpr const char* names[] = {"store", "restore", "drop", "advance", "reverse"};
  return c10::str(names[static_cast<int>(action.kind)], "(", action.step, ")");
}

}  // namespace

ReplayCost cost_of(const std::vector<ReplayAction>& plan, int64_t steps) {
  TORCH_CHECK(steps >= 0, "cost_of: expected 0 steps or more, got ", steps);
  ReplayCost cost;
  int64_t current = 0, left = steps, count = 0;
  std::vector<bool> kept(steps);
  for (size_t i = 0; i < plan.size(); ++i) {
    const auto& action = plan[i];
    const auto k = action.step;
    const auto check = [&](bool possible, const auto&... reason) {
      TORCH_CHECK(possible, "cost_of: action ", i, " of the plan is ", text(action), ", but ", reason...);
    };
    check(k >= 0 && k < steps, "none of the ", steps, " steps starts from S_", k);
    switch (action.kind) {
      case store:
        check(k == current, "S_", current, " is current");
        check(!kept[k], "S_", k, " is kept already");
        kept[k] = true;
        cost.kept = std::max(cost.kept, ++count);
        break;
      case restore:
        check(kept[k], "S_", k, " is not kept");
        current = k;
        break;
      case drop:
        check(kept[k], "S_", k, " is not kept");
        kept[k] = false;
        --count;
        break;
      case advance:
        check(k > current, "S_", current, " is current");
        cost.advanced += k - current;
        current = k;
        break;
      case reverse:
        check(k == current, "S_", current, " is current");
        check(k == left - 1, "the steps left to reverse are the first ", left);
        --left;
        break;
    }
  }
  TORCH_CHECK(left == 0, "cost_of: the plan ends with the first ", left, " of ", steps, " steps left to reverse");
  return cost;
}

std::string KeepAll::name() const { return "KeepAll"; }

std::vector<ReplayAction> KeepAll::plan(int64_t steps) const { return plan_by(*this, Segments{1}, steps); }

std::string Sqrt::name() const { return "Sqrt"; }

std::vector<ReplayAction> Sqrt::plan(int64_t steps) const {
  const auto length = std::ceil(std::sqrt(std::max<int64_t>(steps, 0)));
  return plan_by(*this, Segments{static_cast<int64_t>(length)}, steps);
}

Binomial::Binomial(int64_t snapshots) : snapshots_(snapshots) {
  TORCH_CHECK(snapshots >= 1, "Binomial: expected at least 1 snapshot, got ", snapshots);
}

std::string Binomial::name() const { return c10::str("Binomial(", snapshots_, ")"); }

std::vector<ReplayAction> Binomial::plan(int64_t steps) const {
  Revolve whole{std::min(snapshots_, steps), 1, 1};
  auto& [s, r, beta] = whole;
  for (int64_t next; (next = beta * (s + r) / r) < steps; ++r) beta = next;
  return plan_by(*this, whole, steps);
}

Tree::Tree(int64_t arity) : arity_(arity) {
  TORCH_CHECK(arity >= 2, "Tree: expected an arity of at least 2, got ", arity);
}

std::string Tree::name() const { return c10::str("Tree(", arity_, ")"); }

std::vector<ReplayAction> Tree::plan(int64_t steps) const { return plan_by(*this, Parts{arity_, arity_}, steps); }

}  // namespace gimli
