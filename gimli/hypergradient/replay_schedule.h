#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gimli {

/// One move in differentiating an inner loop backwards, a step at a time. The loop goes through the states S_0, ...,
/// S_T; its step k leads from S_k to S_{k+1}. One state is current, S_0 at first, and some are kept.
struct ReplayAction {
  enum class Kind {
    store,    ///< keep a copy of the current state, S_step
    restore,  ///< make the kept S_step current
    drop,     ///< forget the kept S_step
    advance,  ///< run steps without a graph until S_step is current
    reverse   ///< record the step from the current S_step on and pull the cotangent of S_{step+1} back to S_step
  } kind;
  int64_t step;

  bool operator==(const ReplayAction&) const = default;
};

/// Which states are kept and which are computed again when T steps are reversed: checkpointing, a pure function of T.
/// The plans below drop a state with its last use and contain no action that could be left out; S_{T-1}, whose step is
/// reversed first, is not stored. They have at most 5 T actions and are made in time O(T).
class ReplaySchedule {
 public:
  virtual ~ReplaySchedule() = default;

  virtual std::string name() const = 0;

  /// Reverses the steps T - 1, ..., 0 in this order. Empty if `steps`, T, is 0; throws if it is negative.
  virtual std::vector<ReplayAction> plan(int64_t steps) const = 0;
};

struct ReplayCost {
  int64_t advanced = 0;  ///< steps run without a graph
  int64_t kept = 0;      ///< most states kept at once; the current one is not counted
};

/// What `plan` costs. Throws if it is not one for `steps` steps, with the first action that cannot be done: a state
/// to store or step from is not current, one to restore or drop is not kept, one to store is kept already; the loop
/// would advance backwards, or to S_T, from which no step leads on; a step is reversed out of turn, or never.
ReplayCost cost_of(const std::vector<ReplayAction>& plan, int64_t steps);

/// Keeps every state: T - 1 steps advanced, T - 1 states kept.
class KeepAll final : public ReplaySchedule {
 public:
  std::string name() const override;
  std::vector<ReplayAction> plan(int64_t steps) const override;
};

/// Keeps the start of every segment of q = ceil(sqrt(T)) steps, and all states of the segment at work (Chen et al.
/// 2016): T - 1 + (ceil(T / q) - 1) (q - 1) < 2 T steps advanced, at most 2 q - 2 states kept.
class Sqrt final : public ReplaySchedule {
 public:
  std::string name() const override;
  std::vector<ReplayAction> plan(int64_t steps) const override;
};

/// Advances as few steps as any plan that keeps at most s = `snapshots` states, S_0 among them (revolve, Griewank &
/// Walther 2000). With beta(s, r) = (s + r)! / (s! r!) and the least r for which T <= beta(s, r), these are
///
///     t(T, s) = r T - beta(s + 1, r - 1).
///
/// Throws if `snapshots` is below 1. More than T - 1 are not used.
class Binomial final : public ReplaySchedule {
 public:
  explicit Binomial(int64_t snapshots);

  std::string name() const override;
  std::vector<ReplayAction> plan(int64_t steps) const override;

 private:
  int64_t snapshots_;
};

/// Divides the steps into a = `arity` parts as equal as can be, and each of these likewise, down to single steps. With
/// d = ceil(log_a T), at most (a - 1) d states are kept and at most T d (a - 1) / a steps advanced, each of them at
/// most d times. Throws if `arity` is below 2.
class Tree final : public ReplaySchedule {
 public:
  explicit Tree(int64_t arity = 2);

  std::string name() const override;
  std::vector<ReplayAction> plan(int64_t steps) const override;

 private:
  int64_t arity_;
};

}  // namespace gimli
