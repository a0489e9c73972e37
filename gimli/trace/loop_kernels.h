#pragma once

#include "gimli/trace/pointwise_loops.h"
#include "gimli/trace/product_loops.h"
#include "gimli/trace/row_loops.h"

namespace gimli::tracing {
namespace {

template <class P, Operation operation>
constexpr Loop::Kernel kernel() {
  if constexpr (operation < Operation::softmax) return pointwise<P, operation>;
  if constexpr (operation >= Operation::softmax && operation < Operation::sum) return rows<P, operation>;
  if constexpr (operation >= Operation::sum && operation < Operation::product) return reduction<P, operation>;
  return products<P>;
}

template <class P, size_t... operations>
Loop::Kernel kernel_of(Operation operation, std::index_sequence<operations...>) {
  static constexpr Loop::Kernel kernels[] = {kernel<P, static_cast<Operation>(operations)>()...};
  return kernels[static_cast<size_t>(operation)];
}

}  // namespace

template <int bytes>
Loop::Kernel loop_kernel_of_width(Operation operation, bool is_double) {
  constexpr std::make_index_sequence<static_cast<size_t>(Operation::product) + 1> all;
  return is_double ? kernel_of<Pack<double, bytes>>(operation, all) : kernel_of<Pack<float, bytes>>(operation, all);
}

}  // namespace gimli::tracing
