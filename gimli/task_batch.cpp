#include "gimli/task_batch.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <exception>
#include <latch>
#include <limits>
#include <mutex>

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

}  // namespace

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

}  // namespace gimli
