#include "gimli/task_batch.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <latch>
#include <limits>
#include <list>
#include <mutex>
#include <numeric>
#include <optional>
#include <sstream>
#include <thread>

#include "gimli/substitution.h"

namespace gimli {
namespace {

/// A pool whose threads use one intra-op thread each.
std::shared_ptr<c10::ThreadPool> make_pool(int64_t count) {
  const int intra_op = at::get_num_threads();
  const auto ready = std::make_shared<std::latch>(count);
  auto pool = std::make_shared<c10::ThreadPool>(static_cast<int>(count), /*numa_node_id=*/-1, [ready] {
    at::get_num_threads();  // a thread's first call sets its number to the global one
    at::set_num_threads(1);
    ready->count_down();
  });
  ready->wait();
  // set_num_threads also sets what threads to come begin with.
  at::set_num_threads(intra_op);
  return pool;
}

/// What is remembered of the jobs that came last.
template <class Value>
class Memory {
 public:
  /// Calls `function` with what is remembered, which for a new job is Value().
  template <class Function>
  auto with(const TaskBatch::Job& job, Function function) {
    constexpr size_t most = 16;
    const std::lock_guard lock(mutex_);
    auto at = std::find_if(entries_.begin(), entries_.end(), [&](const auto& entry) { return entry.first == job; });
    if (at == entries_.end()) at = entries_.emplace(entries_.begin(), job, Value());
    entries_.splice(entries_.begin(), entries_, at);
    if (entries_.size() > most) entries_.pop_back();
    return function(at->second);
  }

 private:
  std::mutex mutex_;
  std::list<std::pair<TaskBatch::Job, Value>> entries_;
};

/// Compares an outcome of `batch` with that of tasks that ran one by one: returns what is to be said of it, and refuses
/// it, by the name of Vmap, if it differs by more than rounding.
std::string compare(const TaskBatch& batch, const TaskBatch::Trial& trial, const TaskBatch::Outcome& together,
                    const TaskBatch::Outcome& one_by_one) {
  const auto found = std::max(relative_distance(together.losses, one_by_one.losses),
                              relative_distance(together.gradients, one_by_one.gradients));
  const double tolerance = one_by_one.losses[0].scalar_type() == at::kDouble ? 1e-8 : 1e-3;
  if (found <= tolerance) return "";

  // Others than the first are given to the closures, as many as a user will wait for: those furthest off come first.
  constexpr size_t most = 8;
  const auto off = (together.losses[0] - one_by_one.losses[0]).abs().to(at::kDouble);
  std::vector<int64_t> tasks(off.numel()), given{0};
  std::iota(tasks.begin(), tasks.end(), 0);
  std::stable_sort(tasks.begin(), tasks.end(),
                   [of = off.const_data_ptr<double>()](int64_t a, int64_t b) { return of[a] > of[b]; });
  const auto width = batch.together(off.numel());
  bool is_rounding = width > 1 && !together.draws;
  for (size_t i = 0; is_rounding && i < tasks.size() && given.size() <= most; ++i) {
    const auto task = tasks[i] % width;
    if (std::find(given.begin(), given.end(), task) != given.end()) continue;
    given.push_back(task);
    const auto again = trial(batch, task);
    is_rounding = relative_distance(again.losses, together.losses) == 0 &&
                  relative_distance(again.gradients, together.gradients) == 0;
  }
  TORCH_CHECK(is_rounding, "Vmap: tasks that run together differ from tasks that run one by one by ", found,
              " relative, more than ", tolerance,
              ": the closures read something of a task that is no tensor or that operators do not see, or draw random "
              "numbers into memory of another layout, or the loop does not bear another order of rounding");
  return c10::str("by rounding, tasks that run together differ from tasks that run one by one by ", found, " relative");
}

}  // namespace

int64_t TaskBatch::together(int64_t) const { return 1; }

TaskBatch::Choice TaskBatch::choose(const std::function<Job()>&, const Trial&) const { return {*this}; }

void Sequential::run(int64_t count, const std::function<void(int64_t)>& function) const {
  for (int64_t i = 0; i < count; ++i) function(i);
}

Threads::Threads(int64_t count) : count_(count) {
  TORCH_CHECK(count >= 1 && count <= 1024, "Threads: expected 1 to 1024 threads, got ", count);
  pool_ = make_pool(count);
}

std::string Threads::name() const { return c10::str("Threads(", count_, ")"); }

void Threads::run(int64_t count, const std::function<void(int64_t)>& function) const {
  TORCH_CHECK(!Substitution::active(),
              "Threads: tasks cannot be spread over threads from inside an inner loop, whose "
              "fast weights belong to one thread; use Sequential there");
  TORCH_CHECK(!pool_->inThreadPool(), "Threads: called from one of its own tasks; use Sequential there");

  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  int64_t failed = std::numeric_limits<int64_t>::max();
  const auto worker = [&] {
    for (int64_t i = next++; i < count; i = next++) {
      try {
        function(i);
      } catch (...) {
        next = count;
        const std::lock_guard lock(mutex);
        if (i < failed) {
          failed = i;
          error = std::current_exception();
        }
      }
    }
  };

  const at::ThreadLocalState caller;
  const int64_t workers = std::min(count_, count);
  std::latch done(workers);
  for (int64_t w = 0; w < workers; ++w) {
    pool_->run([&] {
      {
        const at::ThreadLocalStateGuard as_caller(caller);
        worker();
      }
      done.count_down();
    });
  }
  done.wait();
  if (error) std::rethrow_exception(error);
}

class Vmap::Seen final : public Memory<int64_t> {};

Vmap::Vmap() : seen_(std::make_shared<Seen>()) {}

Vmap::Vmap(int64_t threads) : Vmap() { threads_.emplace(threads); }

std::string Vmap::name() const { return threads_ ? c10::str("Vmap(", threads_->count(), ")") : "Vmap()"; }

int64_t Vmap::together(int64_t count) const {
  return threads_ ? (count + threads_->count() - 1) / threads_->count() : count;
}

TaskBatch::Choice Vmap::choose(const std::function<Job()>& describe, const Trial& trial) const {
  const auto job = describe();
  const auto calls = seen_->with(job, [](int64_t& calls) { return calls + 1; });
  std::string remark;
  if ((calls & (calls - 1)) == 0) {
    const auto together = trial(*this, 0);
    remark = compare(*this, trial, together, trial(Sequential(), 0));
  }
  seen_->with(job, [](int64_t& calls) { ++calls; });
  return {*this, remark};
}

void Vmap::run(int64_t count, const std::function<void(int64_t)>& function) const {
  threads_ ? threads_->run(count, function) : Sequential().run(count, function);
}

/// The place of the fastest among the candidates, and what all took.
struct Measured {
  size_t fastest = 0;
  std::string remark = {};
};

class Auto::Chosen final : public Memory<Measured> {};

Auto::Auto(int64_t threads) : chosen_(std::make_shared<Chosen>()) {
  TORCH_CHECK(threads >= 0, "Auto: expected at least 1 thread, or 0 for as many as the processor has, got ", threads);
  if (threads == 0) threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
  candidates_ = {std::make_shared<Sequential>(), std::make_shared<Threads>(threads), std::make_shared<Vmap>(),
                 std::make_shared<Vmap>(threads)};
}

TaskBatch::Choice Auto::choose(const std::function<Job()>& describe, const Trial& trial) const {
  const auto job = describe();
  auto measured = chosen_->with(job, [](const Measured& known) { return known; });
  if (!measured.remark.empty()) return {*candidates_[measured.fastest], measured.remark};

  // The least of a few runs: the first of each pays for memory that later ones find.
  constexpr int rounds = 3;
  std::optional<Outcome> one_by_one;
  double least = std::numeric_limits<double>::infinity();
  std::ostringstream remark;
  remark.precision(3);
  const auto measure = [&](size_t candidate) {
    double seconds = std::numeric_limits<double>::infinity();
    std::string said;
    for (int round = 0; round < rounds; ++round) {
      auto outcome = trial(*candidates_[candidate], 0);
      seconds = std::min(seconds, outcome.seconds);
      if (!one_by_one) one_by_one = outcome;
      if (round == 0) said = compare(*candidates_[candidate], trial, outcome, *one_by_one);
    }
    remark << (candidate > 0 ? ", " : "") << candidates_[candidate]->name() << " " << 1e3 * seconds << " ms";
    if (!said.empty()) remark << " (" << said << ")";
    if (seconds < least) std::tie(least, measured.fastest) = std::pair(seconds, candidate);
  };
  measure(0);
  measure(1);
  try {
    measure(2);
    measure(3);
  } catch (const c10::Error& error) {
    remark << ", " << error.what_without_backtrace();
  }
  measured.remark = remark.str();
  chosen_->with(job, [&](Measured& known) { known = measured; });
  return {*candidates_[measured.fastest], measured.remark};
}

void Auto::run(int64_t count, const std::function<void(int64_t)>& function) const {
  candidates_[1]->run(count, function);
}

}  // namespace gimli
