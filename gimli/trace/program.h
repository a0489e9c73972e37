#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gimli/trace/loops.h"

namespace gimli::tracing {

/// Of slots in an arena, in bytes: so much, and less of smaller ones.
constexpr int64_t kAlignment = 64;

/// How a tensor lies in some memory.
struct Layout {
  std::vector<int64_t> sizes, strides;
  int64_t offset;
  at::ScalarType type;

  bool operator==(const Layout&) const = default;
};

/// How a tensor lies in the memory of a slot. Tensors that lie alike share their layout.
struct Geometry {
  size_t slot;
  std::shared_ptr<const Layout> layout;

  const std::vector<int64_t>& sizes() const { return layout->sizes; }
  const std::vector<int64_t>& strides() const { return layout->strides; }
  int64_t offset() const { return layout->offset; }
  at::ScalarType type() const { return layout->type; }
  int64_t count() const;  ///< of elements
  int64_t bytes() const { return count() * static_cast<int64_t>(at::elementSize(type())); }
};

/// Memory that the list's tensors lie in.
struct Slot {
  enum Kind { computed, copied, shared, constant } kind;
  at::Tensor owner;  ///< a tensor in it, of all that is not computed
  int64_t bytes;
  int64_t begin = 0;              ///< in the memory of its owner, in bytes
  int64_t first = -1, last = -1;  ///< instructions between which it is in use
  int64_t offset = 0;             ///< in the arena, of computed ones
};

/// A tensor among an operator's arguments: of the argument itself, or an element of a list.
struct Place {
  size_t argument;
  int64_t element;  ///< -1: the argument itself
  Geometry geometry;
};

/// What an own kernel computes. Its operands are the places of its instruction.
struct OwnOperation {
  Operation operation;
  double p = 1, q = 1;
  Epilogue epilogue = Epilogue::none;
  std::vector<bool> is_reduced = {};                    ///< of a reduction, each dimension of its operands
  std::vector<std::pair<size_t, double>> numbers = {};  ///< operands that are numbers
};

struct Instruction {
  enum Kind {
    writes_out,  ///< the out= form of an operator, into where its results lie
    writes_in,   ///< in place
    returns,     ///< results are copied to where they lie
    copies,      ///< one tensor to another
    expects_finite,
    loops  ///< an own kernel
  } kind;
  std::optional<c10::OperatorHandle> op = {};
  std::vector<c10::IValue> arguments = {};  ///< without the tensors
  std::vector<Place> places = {};
  std::vector<Geometry> results = {};  ///< what it writes, what it returns first
  std::vector<size_t> returned = {};   ///< of which of the operator's results these are
  std::string what = {};               ///< is expected to be finite
  std::optional<OwnOperation> own = {};

  /// The tensor that is argument k itself, or nullptr.
  const Geometry* operand(size_t k) const;
};

struct Program {
  std::vector<Slot> slots;
  std::vector<Instruction> instructions;
  std::vector<Geometry> copied;
  std::vector<std::optional<Geometry>> outputs;
  int64_t arena_bytes = 0;

  /// Finds when each slot is in use, and gives those that are in use at the same time memory of their own.
  void lay_out();
};

}  // namespace gimli::tracing
