#pragma once

#include "gimli/trace/pointwise_loops.h"
#include "gimli/trace/product_loops.h"
#include "gimli/trace/row_loops.h"

namespace gimli::tracing {
namespace {

template <class P>
Loop::Kernel kernel_of(Operation operation) {
  switch (operation) {
    case Operation::fill:
      return pointwise<P, Fill>;
    case Operation::copy:
      return pointwise<P, Copy>;
    case Operation::scale:
      return pointwise<P, Scale>;
    case Operation::add:
      return pointwise<P, Add>;
    case Operation::multiply:
      return pointwise<P, Multiply>;
    case Operation::divide:
      return pointwise<P, Divide>;
    case Operation::square:
      return pointwise<P, Square>;
    case Operation::cube:
      return pointwise<P, Cube>;
    case Operation::root:
      return pointwise<P, Root>;
    case Operation::inverse_root:
      return pointwise<P, InverseRoot>;
    case Operation::inverse:
      return pointwise<P, Inverse>;
    case Operation::exponential:
      return pointwise<P, Exp>;
    case Operation::logarithm:
      return pointwise<P, Logarithm>;
    case Operation::sigmoid:
      return pointwise<P, Sigmoid>;
    case Operation::tangent:
      return pointwise<P, Tangent>;
    case Operation::absolute:
      return pointwise<P, Absolute>;
    case Operation::sign:
      return pointwise<P, Sign>;
    case Operation::larger:
      return pointwise<P, Larger>;
    case Operation::smaller:
      return pointwise<P, Smaller>;
    case Operation::rectify:
      return pointwise<P, Rectify>;
    case Operation::pass_above:
      return pointwise<P, PassAbove>;
    case Operation::add_product:
      return pointwise<P, AddProduct>;
    case Operation::add_ratio:
      return pointwise<P, AddRatio>;
    case Operation::sigmoid_slope:
      return pointwise<P, SigmoidSlope>;
    case Operation::tanh_slope:
      return pointwise<P, TanhSlope>;
    case Operation::interpolate:
      return pointwise<P, Interpolate>;
    case Operation::scaled_difference:
      return pointwise<P, ScaledDifference>;
    case Operation::softmax:
      return rows<P, Softmax>;
    case Operation::log_softmax:
      return rows<P, LogSoftmax>;
    case Operation::softmax_slope:
      return rows<P, SoftmaxSlope>;
    case Operation::log_softmax_slope:
      return rows<P, LogSoftmaxSlope>;
    case Operation::sum:
      return reduction<P, Copy>;
    case Operation::sum_of_squares:
      return reduction<P, SquaredDifference>;
    case Operation::product:
      break;
  }
  return products<P>;
}

}  // namespace

template <int bytes>
Loop::Kernel loop_kernel_of_width(Operation operation, bool is_double) {
  return is_double ? kernel_of<Pack<double, bytes>>(operation) : kernel_of<Pack<float, bytes>>(operation);
}

}  // namespace gimli::tracing
