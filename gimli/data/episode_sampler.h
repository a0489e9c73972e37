#pragma once

#include <torch/arg.h>

#include <cstdint>
#include <vector>

namespace gimli::data {

/// The shape of an N-way, k-shot episode: `ways` classes with `shots` support and `queries` query examples each.
struct EpisodeSamplerOptions {
  EpisodeSamplerOptions(int64_t ways, int64_t shots) : ways_(ways), shots_(shots) {}
  TORCH_ARG(int64_t, ways);
  TORCH_ARG(int64_t, shots);
  TORCH_ARG(int64_t, queries) = 15;
  TORCH_ARG(uint64_t, seed) = 0;
};

/// Which examples make an episode. A class's place in `classes` is its label.
struct Episode {
  /// Distinct class ids, [ways].
  std::vector<int64_t> classes;
  /// Example ids within their class, [ways * shots], class by class: the examples of `classes[w]` begin at w * shots.
  std::vector<int64_t> support;
  /// Likewise, [ways * queries]; no example is in both.
  std::vector<int64_t> query;
};

/// Draws episodes (Vinyals et al. 2016, "Matching networks for one shot learning"): classes without replacement, every
/// one as likely as any other, then examples of each class without replacement. It knows sizes only, no data.
class EpisodeSampler final {
 public:
  /// `class_sizes[c]` is the number of examples of class c. Throws if there are fewer classes than ways, or fewer
  /// examples in a class than shots + queries.
  EpisodeSampler(std::vector<int64_t> class_sizes, EpisodeSamplerOptions options);
  /// For classes of one size.
  EpisodeSampler(int64_t class_count, int64_t examples_per_class, EpisodeSamplerOptions options);

  /// The episode of that index, at least 0: a pure function of the sizes, the options and the index.
  Episode sample(int64_t index) const;

  const EpisodeSamplerOptions& options() const { return options_; }

 private:
  std::vector<int64_t> class_sizes_;
  EpisodeSamplerOptions options_;
};

}  // namespace gimli::data
