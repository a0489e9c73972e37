#include "gimli/trace.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "gimli/trace/memory.h"
#include "gimli/trace/own_program.h"
#include "gimli/trace/recorder.h"

namespace gimli {

using tracing::Recorder;

Trace::Recording Trace::record(const std::function<TensorList()>& function, const TraceInputs& inputs) {
  TORCH_CHECK(!is_recording(), "Trace::record: this thread records already");
  if (!Recorder::unavailable().empty()) return {function(), nullptr, Recorder::unavailable()};
  Recorder recorder(inputs);
  auto outputs = recorder.run(function);
  auto program = recorder.finish(outputs);
  if (!program) return {std::move(outputs), nullptr, recorder.refusal()};
  return {std::move(outputs), std::shared_ptr<const Trace>(new Trace(std::move(program))), ""};
}

Trace::Trace(std::unique_ptr<const tracing::Program> program) : program_(std::move(program)) {}
Trace::~Trace() = default;

std::shared_ptr<const Trace> Trace::on_own_kernels() const {
  return std::shared_ptr<const Trace>(
      new Trace(std::make_unique<const tracing::Program>(tracing::on_own_kernels(*program_))));
}

int64_t Trace::size() const { return static_cast<int64_t>(program_->instructions.size()); }
int64_t Trace::own_size() const {
  const auto& list = program_->instructions;
  return std::count_if(list.begin(), list.end(), [](const tracing::Instruction& each) { return each.own.has_value(); });
}
int64_t Trace::memory_bytes() const { return program_->arena_bytes; }

std::shared_ptr<Trace::Memory> Trace::allocate() const {
  at::NoGradGuard no_grad;
  return std::make_shared<Memory>(*program_);
}

TensorList Trace::replay(Memory& memory, const TensorList& copied) const {
  const auto& inputs = memory.copied();
  TORCH_CHECK(copied.size() == inputs.size(), "Trace::replay: got ", copied.size(), " tensors for ", inputs.size(),
              " inputs");
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (size_t i = 0; i < inputs.size(); ++i) {
    TORCH_CHECK(copied[i].sizes() == inputs[i].sizes() && copied[i].scalar_type() == inputs[i].scalar_type(),
                "Trace::replay: input ", i, " is ", copied[i].scalar_type(), " of shape ", copied[i].sizes(),
                ", expected ", inputs[i].scalar_type(), " of shape ", inputs[i].sizes());
    tracing::copy_values(copied[i], inputs[i]);
  }
  memory.run();
  return memory.outputs();
}

bool Trace::is_recording() { return Recorder::current != nullptr; }

void Trace::expect_finite(const at::Tensor& scalar, const std::string& what) {
  {
    const Pause looking;
    tracing::check_finite(scalar, what);
  }
  if (Recorder::current) Recorder::current->expect_finite(scalar, what);
}

Trace::Pause::Pause() : paused_(Recorder::current) { Recorder::current = nullptr; }
Trace::Pause::~Pause() { Recorder::current = static_cast<Recorder*>(paused_); }

}  // namespace gimli
