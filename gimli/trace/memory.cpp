#include "gimli/trace/memory.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gimli/trace/lowering.h"

namespace gimli::tracing {

Memory::Memory(const Program& program)
    : program_(program), arena_(at::empty({program.arena_bytes + kAlignment}, at::kByte)) {
  auto* begin = static_cast<char*>(arena_.mutable_data_ptr());
  begin += (kAlignment - reinterpret_cast<uintptr_t>(begin) % kAlignment) % kAlignment;
  for (const auto& slot : program.slots) {
    if (slot.kind == Slot::copied) {
      inputs_.push_back(at::empty({std::max<int64_t>(slot.bytes, 1)}, at::kByte));
      bases_.push_back(static_cast<char*>(inputs_.back().mutable_data_ptr()));
    } else {
      bases_.push_back(slot.kind == Slot::computed ? begin + slot.offset : nullptr);
    }
  }
  for (const auto& geometry : program.copied) copied_.push_back(tensor(geometry));
  for (const auto& output : program.outputs) outputs_.push_back(output ? tensor(*output) : at::Tensor());
  for (const auto& instruction : program.instructions) {
    auto& step = steps_.emplace_back();
    step.instruction = &instruction;
    switch (instruction.kind) {
      case Instruction::loops:
        step.loop = *loop_of(instruction);
        step.loop.at[0].data = address(instruction.results[0]);
        for (const auto& place : instruction.places) step.loop.at[place.argument].data = address(place.geometry);
        for (const auto& [operand, number] : instruction.own->numbers) {
          step.loop.at[operand].data = const_cast<double*>(&number);
        }
        break;
      case Instruction::copies:
        step.results = {tensor(instruction.results[0])};
        step.source = tensor(instruction.places[0].geometry);
        break;
      case Instruction::expects_finite:
        step.source = tensor(instruction.places[0].geometry);
        break;
      default:
        bind_arguments(step);
    }
  }
}

void Memory::bind_arguments(Step& step) const {
  const auto& instruction = *step.instruction;
  for (const auto& argument : instruction.arguments) {
    step.stack.push_back(argument.isTensorList()           ? argument.toTensorList().copy()
                         : argument.isOptionalTensorList() ? argument.toOptionalTensorList().copy()
                                                           : argument);
  }
  for (const auto& [argument, element, geometry] : instruction.places) {
    auto& value = step.stack[argument];
    if (element < 0) {
      value = tensor(geometry);
    } else if (value.isTensorList()) {
      value.toTensorList().set(element, tensor(geometry));
    } else {
      value.toOptionalTensorList().set(element, tensor(geometry));
    }
  }
  for (const auto& result : instruction.results) step.results.push_back(tensor(result));
  if (instruction.kind == Instruction::writes_out) {
    step.stack.insert(step.stack.end(), step.results.begin(), step.results.end());
  }
}

void* Memory::address(const Geometry& geometry) const {
  const auto offset = geometry.offset() * static_cast<int64_t>(at::elementSize(geometry.type()));
  if (auto* base = bases_[geometry.slot]) return base + offset;
  return static_cast<char*>(program_.slots[geometry.slot].owner.storage().mutable_data()) + offset;
}

at::Tensor Memory::tensor(const Geometry& geometry) const {
  const auto& layout = *geometry.layout;
  if (!bases_[geometry.slot]) {
    const auto& owner = program_.slots[geometry.slot].owner;
    return at::empty({0}, owner.options().dtype(layout.type))
        .set_(owner.storage(), layout.offset, layout.sizes, layout.strides);
  }
  return at::from_blob(address(geometry), layout.sizes, layout.strides, at::TensorOptions(layout.type));
}

void Memory::run() {
  for (const auto& step : steps_) {
    if (step.loop.kernel) {
      step.loop.run();
    } else {
      run(step);
    }
  }
}

void Memory::run(const Step& step) {
  const auto& instruction = *step.instruction;
  if (instruction.kind == Instruction::copies) {
    return copy_values(step.source, step.results[0]);
  }
  if (instruction.kind == Instruction::expects_finite) return check_finite(step.source, instruction.what);
  stack_.assign(step.stack.begin(), step.stack.end());
  instruction.op->callBoxed(stack_);
  if (instruction.kind != Instruction::returns) return;
  size_t position = 0, next = 0;
  const auto keep = [&](const at::Tensor& result) {
    if (next < instruction.returned.size() && instruction.returned[next] == position) {
      step.results[next++].copy_(result);
    }
    ++position;
  };
  for (const auto& value : stack_) {
    if (value.isTensor()) {
      keep(value.toTensor());
    } else {
      for (const at::Tensor& result : value.toTensorVector()) keep(result);
    }
  }
}

TensorList Memory::outputs() const {
  TensorList result;
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const auto& output = outputs_[i];
    if (!output.defined() || program_.slots[program_.outputs[i]->slot].kind == Slot::shared) {
      result.push_back(output);
      continue;
    }
    result.push_back(output.is_non_overlapping_and_dense()
                         ? at::detail::empty_strided_cpu(output.sizes(), output.strides(), output.scalar_type())
                         : at::empty(output.sizes(), output.options()));
    copy_values(output, result.back());
  }
  return result;
}

void copy_values(const at::Tensor& from, const at::Tensor& to) {
  if (from.is_non_overlapping_and_dense() && from.strides() == to.strides() && from.scalar_type() == to.scalar_type()) {
    std::memcpy(to.mutable_data_ptr(), from.const_data_ptr(), from.nbytes());
  } else {
    to.copy_(from);
  }
}

void check_finite(const at::Tensor& scalar, const std::string& what) {
  const auto value = scalar.scalar_type() == at::kFloat ? *scalar.const_data_ptr<float>() : scalar.item<double>();
  TORCH_CHECK(std::isfinite(value), what, " is ", value, ", expected a finite number");
}

}  // namespace gimli::tracing
