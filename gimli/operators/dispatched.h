#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace gimli::operators {

/// Passes over memory as an operator of libtorch's dispatcher, registered under a name with the signature `Function`.
/// It is called below autograd, where a Trace sees it.
template <class Function>
class Dispatched final {
 public:
  explicit Dispatched(const char* name)
      : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>()) {}

  template <class... Arguments>
  auto operator()(const Arguments&... arguments) const {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return handle_.call(arguments...);
  }

 private:
  c10::TypedOperatorHandle<Function> handle_;
};

}  // namespace gimli::operators
