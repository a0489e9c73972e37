#include "gimli/hypergradient/replay_schedule.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <queue>
#include <set>
#include <tuple>

#include "expect.h"

namespace {

using namespace gimli;
using enum ReplayAction::Kind;

using Plan = std::vector<ReplayAction>;

TEST(ReplaySchedule, plans_as_by_hand) {
  const Plan whole_loop_of_4 = {{store, 0},   {advance, 1}, {store, 1}, {advance, 2}, {store, 2},   {advance, 3},
                                {reverse, 3}, {restore, 2}, {drop, 2},  {reverse, 2}, {restore, 1}, {drop, 1},
                                {reverse, 1}, {restore, 0}, {drop, 0},  {reverse, 0}};
  EXPECT_EQ(KeepAll().plan(4), whole_loop_of_4);
  EXPECT_EQ(Binomial(3).plan(4), whole_loop_of_4);
  EXPECT_EQ(Tree(4).plan(4), whole_loop_of_4);

  const Plan halves_of_4 = {{store, 0},   {advance, 2}, {store, 2},   {advance, 3}, {reverse, 3},
                            {restore, 2}, {drop, 2},    {reverse, 2}, {restore, 0}, {advance, 1},
                            {reverse, 1}, {restore, 0}, {drop, 0},    {reverse, 0}};
  EXPECT_EQ(Tree(2).plan(4), halves_of_4);

  const Plan start_alone = {{store, 0},   {advance, 2}, {reverse, 2}, {restore, 0}, {advance, 1},
                            {reverse, 1}, {restore, 0}, {drop, 0},    {reverse, 0}};
  EXPECT_EQ(Binomial(1).plan(3), start_alone);

  const Plan segments_of_3 = {{store, 0},   {advance, 3}, {store, 3},   {advance, 4}, {reverse, 4},
                              {restore, 3}, {drop, 3},    {reverse, 3}, {restore, 0}, {advance, 1},
                              {store, 1},   {advance, 2}, {reverse, 2}, {restore, 1}, {drop, 1},
                              {reverse, 1}, {restore, 0}, {drop, 0},    {reverse, 0}};
  EXPECT_EQ(Sqrt().plan(5), segments_of_3);
}

/// Expects that nothing in `plan` can be left out, and no state be dropped earlier.
void expect_lean(const Plan& plan) {
  std::map<int64_t, int64_t> uses;
  int64_t current = 0, stored = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    const auto [kind, k] = plan[i];
    switch (kind) {
      case store:
        ++stored;
        uses[k] = 0;
        ASSERT_EQ(plan[i + 1].kind, advance);
        break;
      case restore:
        ASSERT_NE(k, current);
        ++uses[k];
        break;
      case drop:
        --stored;
        ASSERT_EQ(plan[i - 1], (ReplayAction{restore, k}));
        break;
      case advance:
        ASSERT_TRUE(plan[i + 1].kind == store || plan[i + 1].kind == reverse);
        break;
      case reverse:
        ASSERT_TRUE(i + 1 == plan.size() || plan[i + 1].kind == restore);
        break;
    }
    if (kind == restore || kind == advance) current = k;
  }
  ASSERT_EQ(stored, 0);
  for (const auto& [k, count] : uses) ASSERT_GE(count, 1) << "S_" << k;
}

/// How often each step is run without a graph.
std::vector<int64_t> passes(const Plan& plan, int64_t steps) {
  std::vector<int64_t> of_step(steps);
  int64_t current = 0;
  for (const auto& [kind, k] : plan) {
    for (; kind == advance && current < k; ++current) ++of_step[current];
    if (kind == restore) current = k;
  }
  return of_step;
}

struct Bounds {
  double advanced, kept, passes;
};

TEST(ReplaySchedule, stays_within_its_bounds) {
  const auto tree = [](int64_t arity) {
    return [=](int64_t steps) {
      int64_t depth = 0;
      for (int64_t reached = 1; reached < steps; reached *= arity) ++depth;
      return Bounds{static_cast<double>(steps * depth * (arity - 1)) / static_cast<double>(arity),
                    static_cast<double>((arity - 1) * depth), static_cast<double>(depth)};
    };
  };
  const struct {
    std::shared_ptr<ReplaySchedule> schedule;
    std::function<Bounds(int64_t)> bounds;
  } table[] = {
      {std::make_shared<KeepAll>(),
       [](int64_t steps) {
         return Bounds{steps - 1.0, steps - 1.0, 1};
       }},
      {std::make_shared<Sqrt>(),
       [](int64_t steps) {
         const auto q = std::ceil(std::sqrt(steps));
         return Bounds{steps - 1 + (std::ceil(static_cast<double>(steps) / q) - 1) * (q - 1), 2 * q - 2, 2};
       }},
      {std::make_shared<Tree>(), tree(2)},
      {std::make_shared<Tree>(3), tree(3)},
      {std::make_shared<Tree>(4), tree(4)},
      {std::make_shared<Tree>(10), tree(10)},
      {std::make_shared<Tree>(5000), tree(5000)},
      {std::make_shared<Binomial>(1),
       [](int64_t steps) {
         return Bounds{steps * (steps - 1) / 2.0, 1, HUGE_VAL};
       }},
      {std::make_shared<Binomial>(7),
       [](int64_t) {
         return Bounds{HUGE_VAL, 7, HUGE_VAL};
       }},
  };
  for (const auto& [schedule, bounds_of] : table) {
    EXPECT_EQ(schedule->plan(0), Plan());
    EXPECT_EQ(schedule->plan(1), (Plan{{reverse, 0}}));
    for (int64_t steps = 1; steps <= 1100; ++steps) {
      SCOPED_TRACE(schedule->name() + " of " + std::to_string(steps));
      const auto plan = schedule->plan(steps);
      const auto cost = cost_of(plan, steps);
      const auto bounds = bounds_of(steps);
      const auto runs = passes(plan, steps);
      ASSERT_LE(cost.advanced, bounds.advanced);
      ASSERT_LE(cost.kept, bounds.kept);
      ASSERT_LE(*std::max_element(runs.begin(), runs.end()), bounds.passes);
      ASSERT_EQ(std::accumulate(runs.begin(), runs.end(), int64_t(0)), cost.advanced);
      ASSERT_LE(plan.size(), 5 * static_cast<size_t>(steps));
      ASSERT_NO_FATAL_FAILURE(expect_lean(plan));
    }
  }
  for (int64_t q = 2; q <= 33; ++q) {  // where they are attained
    const auto cost = cost_of(Sqrt().plan(q * q), q * q);
    EXPECT_EQ(cost.advanced, q * q - 1 + (q - 1) * (q - 1));
    EXPECT_EQ(cost.kept, 2 * q - 2);
  }
  EXPECT_EQ(cost_of(Tree().plan(1024), 1024).advanced, 1024 * 10 / 2);
  EXPECT_EQ(cost_of(Tree().plan(1024), 1024).kept, 10);
  EXPECT_EQ(cost_of(Tree(10).plan(1000), 1000).advanced, 1000 * 3 * 9 / 10);
  EXPECT_EQ(cost_of(Tree(10).plan(1000), 1000).kept, 27);
}

double binomial_coefficient(int64_t n, int64_t k) {
  double result = 1;
  for (int64_t i = 1; i <= k; ++i) result = result * static_cast<double>(n - k + i) / static_cast<double>(i);
  return k < 0 ? 0 : result;
}

/// r l - beta(s + 1, r - 1), exact below 2^53.
double closed_form(int64_t l, int64_t s) {
  int64_t r = 0;
  while (binomial_coefficient(s + r, s) < static_cast<double>(l)) ++r;
  return static_cast<double>(r * l) - binomial_coefficient(s + r, s + 1);
}

TEST(Binomial, advances_as_few_steps_as_possible) {
  constexpr int64_t most = 200;
  std::vector<std::vector<int64_t>> t(most + 1, std::vector<int64_t>(most + 1));  // by length and snapshots
  for (int64_t l = 2; l <= most; ++l) {
    t[l][1] = l * (l - 1) / 2;
    for (int64_t s = 2; s <= most; ++s) {
      t[l][s] = std::numeric_limits<int64_t>::max();
      for (int64_t m = 1; m < l; ++m) t[l][s] = std::min(t[l][s], m + t[l - m][s - 1] + t[m][s]);
    }
  }
  for (int64_t l = 1; l <= most; ++l) {
    for (int64_t s = 1; s <= l; ++s) {
      const auto plan = Binomial(s).plan(l);
      const auto cost = cost_of(plan, l);
      ASSERT_EQ(cost.advanced, t[l][s]) << l << " steps, " << s << " snapshots";
      ASSERT_EQ(cost.advanced, closed_form(l, s)) << l << " steps, " << s << " snapshots";
      ASSERT_LE(cost.kept, s);
      ASSERT_NO_FATAL_FAILURE(expect_lean(plan));
    }
    const auto all = KeepAll().plan(l);
    for (const auto s : {l, l + 1, int64_t(1) << 62}) ASSERT_EQ(Binomial(s).plan(l), all);
  }
}

/// The least number of steps advanced in any plan at all: the shortest way through the machine's states, which are what
/// is current, the set that is kept and the steps left to reverse.
int64_t least_advanced(int64_t steps, int snapshots) {
  using Reached = std::tuple<int64_t, int64_t, unsigned, int64_t>;  // steps advanced, then the machine's state
  std::priority_queue<Reached, std::vector<Reached>, std::greater<>> queue;
  std::set<std::tuple<int64_t, unsigned, int64_t>> seen;
  queue.push({0, 0, 0, steps});
  while (true) {
    const auto [advanced, current, kept, left] = queue.top();
    queue.pop();
    if (left == 0) return advanced;
    if (!seen.insert({current, kept, left}).second) continue;
    if (current + 1 < steps) queue.push({advanced + 1, current + 1, kept, left});
    if (current == left - 1) queue.push({advanced, current, kept, left - 1});
    if (std::popcount(kept) < snapshots) queue.push({advanced, current, kept | 1u << current, left});
    for (int64_t k = 0; k < steps; ++k) {
      if ((kept >> k & 1) == 0) continue;
      queue.push({advanced, k, kept, left});
      queue.push({advanced, current, kept & ~(1u << k), left});
    }
  }
}

TEST(Binomial, is_beaten_by_no_plan_at_all) {
  for (int64_t steps = 1; steps <= 9; ++steps) {
    for (int s = 1; s <= 4; ++s) {
      EXPECT_EQ(cost_of(Binomial(s).plan(steps), steps).advanced, least_advanced(steps, s)) << steps << ", " << s;
    }
  }
}

TEST(ReplaySchedule, plans_long_loops) {
  constexpr int64_t steps = 100'000;
  for (const int64_t s : {1, 2, 3, 10, 1000, 99'998, 99'999}) {
    const auto plan = Binomial(s).plan(steps);
    const auto cost = cost_of(plan, steps);
    EXPECT_EQ(cost.advanced, closed_form(steps, s)) << s;
    EXPECT_EQ(cost.kept, s);
    EXPECT_LE(plan.size(), 5 * steps);
  }
  EXPECT_EQ(cost_of(KeepAll().plan(steps), steps).kept, steps - 1);
  EXPECT_EQ(cost_of(Sqrt().plan(steps), steps).kept, 315 + 315);  // starts, and the rest of a segment of 317 steps
  EXPECT_EQ(cost_of(Tree().plan(steps), steps).kept, 17);
}

TEST(ReplaySchedule, knows_a_wrong_plan) {
  const struct {
    Plan plan;
    const char* error;
  } table[] = {
      {{{store, 1}}, "cost_of: action 0 of the plan is store(1), but S_0 is current"},
      {{{store, 0}, {store, 0}}, "action 1 of the plan is store(0), but S_0 is kept already"},
      {{{advance, 2}, {restore, 0}}, "action 1 of the plan is restore(0), but S_0 is not kept"},
      {{{store, 0}, {drop, 0}, {drop, 0}}, "action 2 of the plan is drop(0), but S_0 is not kept"},
      {{{advance, 2}, {advance, 1}}, "action 1 of the plan is advance(1), but S_2 is current"},
      {{{advance, 0}}, "action 0 of the plan is advance(0), but S_0 is current"},
      {{{advance, 3}}, "action 0 of the plan is advance(3), but none of the 3 steps starts from S_3"},
      {{{restore, -1}}, "action 0 of the plan is restore(-1), but none of the 3 steps starts from S_-1"},
      {{{reverse, 2}}, "action 0 of the plan is reverse(2), but S_0 is current"},
      {{{reverse, 0}}, "action 0 of the plan is reverse(0), but the steps left to reverse are the first 3"},
      {{{store, 0}, {advance, 2}, {reverse, 2}, {reverse, 2}},
       "action 3 of the plan is reverse(2), but the steps left to reverse are the first 2"},
      {{{store, 0}, {advance, 2}, {reverse, 2}}, "cost_of: the plan ends with the first 2 of 3 steps left to reverse"},
      {{}, "cost_of: the plan ends with the first 3 of 3 steps left to reverse"},
  };
  for (const auto& [plan, error] : table) {
    expect_error([&] { cost_of(plan, 3); }, error);
  }
  expect_error(
      [] {
        cost_of({{reverse, 0}}, 0);
      },
      "action 0 of the plan is reverse(0), but none of the 0 steps starts from S_0");
  expect_error([] { cost_of({}, -1); }, "cost_of: expected 0 steps or more, got -1");

  const auto wasteful =
      cost_of({{store, 0}, {restore, 0}, {advance, 1}, {store, 1}, {reverse, 1}, {restore, 0}, {reverse, 0}}, 2);
  EXPECT_EQ(wasteful.advanced, 1);
  EXPECT_EQ(wasteful.kept, 2);
}

TEST(ReplaySchedule, refuses_what_makes_no_sense) {
  expect_error([] { KeepAll().plan(-1); }, "KeepAll: expected 0 steps or more, got -1");
  expect_error([] { Sqrt().plan(-1); }, "Sqrt: expected 0 steps or more, got -1");
  expect_error([] { Binomial(3).plan(-2); }, "Binomial(3): expected 0 steps or more, got -2");
  expect_error([] { Tree().plan(-1); }, "Tree(2): expected 0 steps or more, got -1");
  expect_error([] { Binomial(0); }, "Binomial: expected at least 1 snapshot, got 0");
  expect_error([] { Tree(1); }, "Tree: expected an arity of at least 2, got 1");
}

}  // namespace
