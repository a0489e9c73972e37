#pragma once

#include "gimli/operators/replacement.h"

namespace gimli {

/// While it lives, gimli's own operators are in use, or libtorch's.
class OwnOperators final {
 public:
  explicit OwnOperators(bool use) : before_(use_own_operators(use)) {}
  ~OwnOperators() { use_own_operators(before_); }
  OwnOperators(const OwnOperators&) = delete;
  OwnOperators& operator=(const OwnOperators&) = delete;

 private:
  const bool before_;
};

}  // namespace gimli
