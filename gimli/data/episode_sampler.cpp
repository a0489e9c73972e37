#include "gimli/data/episode_sampler.h"

#include <c10/util/Exception.h>

#include <utility>

#include "gimli/data/counter_rng.h"

namespace gimli::data {
namespace {

std::vector<int64_t> equal_sizes(int64_t count, int64_t size) {
  TORCH_CHECK(count >= 0, "EpisodeSampler: expected a number of classes of at least 0, got ", count);
  return std::vector<int64_t>(count, size);
}

}  // namespace

EpisodeSampler::EpisodeSampler(std::vector<int64_t> class_sizes, EpisodeSamplerOptions options)
    : class_sizes_(std::move(class_sizes)), options_(options) {
  const int64_t ways = options.ways(), shots = options.shots(), queries = options.queries();
  const int64_t count = static_cast<int64_t>(class_sizes_.size());
  TORCH_CHECK(ways >= 1, "EpisodeSampler: expected at least 1 way, got ", ways);
  TORCH_CHECK(shots >= 1, "EpisodeSampler: expected at least 1 shot, got ", shots);
  TORCH_CHECK(queries >= 0, "EpisodeSampler: expected at least 0 queries, got ", queries);
  TORCH_CHECK(ways <= count, "EpisodeSampler: ", ways, " ways need as many classes, got ", count);
  for (int64_t c = 0; c < count; ++c) {
    TORCH_CHECK(shots <= class_sizes_[c] && queries <= class_sizes_[c] - shots, "EpisodeSampler: ", shots,
                " shots and ", queries, " queries need as many examples of every class, but class ", c, " has ",
                class_sizes_[c]);
  }
}

EpisodeSampler::EpisodeSampler(int64_t class_count, int64_t examples_per_class, EpisodeSamplerOptions options)
    : EpisodeSampler(equal_sizes(class_count, examples_per_class), options) {}

Episode EpisodeSampler::sample(int64_t index) const {
  TORCH_CHECK(index >= 0, "sample: expected an index of at least 0, got ", index);
  CounterRng rng(options_.seed(), static_cast<uint64_t>(index));
  const int64_t shots = options_.shots(), queries = options_.queries();
  Episode episode;
  episode.classes = rng.choose(static_cast<int64_t>(class_sizes_.size()), options_.ways());
  for (const int64_t id : episode.classes) {
    const auto examples = rng.choose(class_sizes_[id], shots + queries);
    episode.support.insert(episode.support.end(), examples.begin(), examples.begin() + shots);
    episode.query.insert(episode.query.end(), examples.begin() + shots, examples.end());
  }
  return episode;
}

}  // namespace gimli::data
