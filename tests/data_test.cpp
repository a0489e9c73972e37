#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdlib>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "data_fixture.h"
#include "gimli/data/cache_file.h"
#include "gimli/data/counter_rng.h"
#include "gimli/data/episode_sampler.h"
#include "gimli/data/sinusoid.h"

using namespace gimli::data;

using gimli::message_of;

// The first four words are a published known answer of Philox4x32-10 (counter 0, key 0). All other constants below come
// from a second implementation in Python, checked against the published answers, with exact fractions for `uniform`:
// they say that tasks are the same for every compiler and for every version of the library.
TEST(CounterRng, known_answers) {
  CounterRng zero(0, 0);
  for (const uint32_t expected : {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}) EXPECT_EQ(zero.bits(), expected);

  CounterRng keyed(0x0123456789abcdef, 42);
  for (const uint32_t expected : {0xbbb8d34bu, 0x3d0d511du, 0x3998a0efu, 0x268e0d84u, 0x6949a91bu, 0xfd665716u}) {
    EXPECT_EQ(keyed.bits(), expected);
  }

  CounterRng small(7, 0);
  for (const int64_t expected : {9, 7, 1, 0, 4, 7, 1, 9, 0, 0}) EXPECT_EQ(small.below(10), expected);

  CounterRng large(7, 1);
  for (const int64_t expected : {1485119383, 675884560}) EXPECT_EQ(large.below(3000000000), expected);
  for (const int64_t expected : {2549515977, 2303710858}) EXPECT_EQ(large.below(3000000000), expected);

  CounterRng real(7, 2);
  for (const double expected : {0x1.1ad99a6413798p+2, -0x1.0abcaab78a839p+0, 0x1.13208151ca8c2p+2}) {
    EXPECT_EQ(real.uniform(-5, 5), expected);
  }

  EXPECT_EQ(CounterRng(7, 3).choose(20, 20),
            (Ids{11, 3, 4, 13, 1, 0, 6, 2, 12, 19, 7, 14, 15, 17, 8, 5, 18, 16, 9, 10}));
}

TEST(CounterRng, bounded_integers_are_unbiased) {
  // 3 * 2^30: a draw modulo the bound would fall into the first third half of the time.
  Ids thirds(3);
  CounterRng rng(1, 0);
  for (int i = 0; i < 30000; ++i) ++thirds[rng.below(int64_t{3} << 30) >> 30];
  EXPECT_LT(chi_square(thirds), 13.8);  // the 0.999 quantile for 2 degrees of freedom
  Ids sevenths(7);
  for (int i = 0; i < 70000; ++i) ++sevenths[rng.below(7)];
  EXPECT_LT(chi_square(sevenths), 22.5);
  EXPECT_EQ(rng.below(1), 0);
}

TEST(CounterRng, streams_and_seeds_differ) {
  std::set<uint64_t> seen;
  for (const uint64_t seed : {0ull, 1ull, 1ull << 32}) {
    for (const uint64_t stream : {0ull, 1ull, 1ull << 32}) {
      CounterRng rng(seed, stream);
      seen.insert(uint64_t{rng.bits()} << 32 | rng.bits());
    }
  }
  EXPECT_EQ(seen.size(), 9u);
}

TEST(CounterRng, bad_input) {
  CounterRng rng(0, 0);
  EXPECT_EQ(message_of([&] { rng.below(0); }), "below: expected a bound from 1 to 2^32 - 1, got 0");
  EXPECT_EQ(message_of([&] { rng.below(int64_t{1} << 32); }),
            "below: expected a bound from 1 to 2^32 - 1, got 4294967296");
  EXPECT_EQ(message_of([&] { rng.choose(3, 4); }), "choose: expected a count from 0 to 3, got 4");
}

TEST(EpisodeSampler, known_answers) {
  const auto expect = [](const Episode& episode, const Ids& classes, const Ids& support, const Ids& query) {
    EXPECT_EQ(episode.classes, classes);
    EXPECT_EQ(episode.support, support);
    EXPECT_EQ(episode.query, query);
  };
  expect(EpisodeSampler(4800, 20, EpisodeSamplerOptions(5, 1).queries(2)).sample(0), {1915, 4226, 3531, 2907, 4666},
         {7, 0, 5, 12, 13}, {14, 2, 7, 4, 15, 9, 9, 18, 18, 1});
  expect(EpisodeSampler(4800, 20, EpisodeSamplerOptions(5, 1).queries(2).seed(3)).sample(1000000),
         {121, 2581, 481, 4733, 4035}, {16, 1, 10, 8, 10}, {5, 13, 8, 6, 17, 8, 7, 10, 13, 1});
  expect(EpisodeSampler({4, 5, 6}, EpisodeSamplerOptions(2, 1).queries(2).seed(1)).sample(5), {2, 0}, {2, 2},
         {3, 4, 0, 3});
}

TEST(EpisodeSampler, classes_are_distinct_and_examples_disjoint) {
  const Ids sizes{6, 7, 20, 6, 9, 11};
  const EpisodeSampler sampler(sizes, EpisodeSamplerOptions(4, 2).queries(4).seed(9));
  for (int64_t i = 0; i < 500; ++i) {
    const auto episode = sampler.sample(i);
    ASSERT_EQ(episode.classes.size(), 4u);
    ASSERT_EQ(episode.support.size(), 8u);
    ASSERT_EQ(episode.query.size(), 16u);
    EXPECT_EQ(std::set<int64_t>(episode.classes.begin(), episode.classes.end()).size(), 4u);
    for (int64_t w = 0; w < 4; ++w) {
      std::set<int64_t> examples(episode.support.begin() + w * 2, episode.support.begin() + (w + 1) * 2);
      examples.insert(episode.query.begin() + w * 4, episode.query.begin() + (w + 1) * 4);
      EXPECT_EQ(examples.size(), 6u);
      EXPECT_GE(*examples.begin(), 0);
      EXPECT_LT(*examples.rbegin(), sizes[episode.classes[w]]);
    }
  }
}

TEST(EpisodeSampler, every_class_example_and_label_is_equally_likely) {
  const EpisodeSampler sampler(20, 10, EpisodeSamplerOptions(5, 1).queries(2).seed(4));
  Ids classes(20), first(20), support(10), query(10);
  for (int64_t i = 0; i < 4000; ++i) {
    const auto episode = sampler.sample(i);
    for (const auto c : episode.classes) ++classes[c];
    ++first[episode.classes[0]];
    for (const auto e : episode.support) ++support[e];
    for (const auto e : episode.query) ++query[e];
  }
  EXPECT_LT(chi_square(classes), 43.8);  // the 0.999 quantiles for 19 and 9 degrees of freedom
  EXPECT_LT(chi_square(first), 43.8);
  EXPECT_LT(chi_square(support), 27.9);
  EXPECT_LT(chi_square(query), 27.9);
}

TEST(EpisodeSampler, takes_all_there_is) {
  const EpisodeSampler sampler(3, 4, EpisodeSamplerOptions(3, 4).queries(0));
  const auto episode = sampler.sample(0);
  EXPECT_EQ(std::set<int64_t>(episode.classes.begin(), episode.classes.end()).size(), 3u);
  EXPECT_EQ(episode.support.size(), 12u);
  EXPECT_TRUE(episode.query.empty());
}

TEST(EpisodeSampler, bad_input) {
  const auto make = [](int64_t classes, int64_t size, int64_t ways, int64_t shots, int64_t queries) {
    return message_of([=] { EpisodeSampler(classes, size, EpisodeSamplerOptions(ways, shots).queries(queries)); });
  };
  EXPECT_EQ(make(4, 20, 5, 1, 15), "EpisodeSampler: 5 ways need as many classes, got 4");
  EXPECT_EQ(make(5, 20, 5, 6, 15),
            "EpisodeSampler: 6 shots and 15 queries need as many examples of every class, but class 0 has 20");
  EXPECT_EQ(make(5, 20, 0, 1, 15), "EpisodeSampler: expected at least 1 way, got 0");
  EXPECT_EQ(make(5, 20, 5, 0, 15), "EpisodeSampler: expected at least 1 shot, got 0");
  EXPECT_EQ(make(5, 20, 5, 1, -1), "EpisodeSampler: expected at least 0 queries, got -1");
  EXPECT_EQ(make(-1, 20, 5, 1, 1), "EpisodeSampler: expected a number of classes of at least 0, got -1");
  EXPECT_EQ(make(5, 20, 5, INT64_MAX, INT64_MAX).find("EpisodeSampler: 9223372036854775807 shots"), 0u);
  EXPECT_EQ(message_of([] {
              EpisodeSampler({9, 3, 9}, EpisodeSamplerOptions(2, 2).queries(2));
            }),
            "EpisodeSampler: 2 shots and 2 queries need as many examples of every class, but class 1 has 3");
  const EpisodeSampler sampler(5, 20, EpisodeSamplerOptions(5, 1));
  EXPECT_EQ(message_of([&] { sampler.sample(-1); }), "sample: expected an index of at least 0, got -1");
}

TEST(Sinusoid, known_answers) {
  const Sinusoid source(SinusoidOptions().shots(1).queries(1));
  const auto expect = [&](int64_t index, double amplitude, double phase, float x) {
    EXPECT_EQ(source.curve(index).amplitude, amplitude);
    EXPECT_EQ(source.curve(index).phase, phase);
    EXPECT_EQ(source.task(index).support.data.item<float>(), x);
  };
  expect(0, 0x1.0714fa81d5315p+1, 0x1.27d90095004d4p+1, 0x1.2e3cp+2f);
  expect(1, 0x1.50dc75e1ab504p+1, 0x1.7b84ecded057ep-3, 0x1.7470d2p+1f);
  expect(123456789, 0x1.71a13f0e88127p+1, 0x1.b16c0ccb9f667p-1, 0x1.95779ap-2f);
}

TEST(Sinusoid, is_pure) { expect_pure(Sinusoid(SinusoidOptions().seed(3))); }

TEST(Sinusoid, is_the_closed_form) {
  const Sinusoid source(SinusoidOptions().shots(5).queries(7).seed(1));
  for (int64_t i = 0; i < 50; ++i) {
    const auto task = source.task(i);
    const auto curve = source.curve(i);
    EXPECT_EQ(task.support.data.sizes(), (Ids{5, 1}));
    EXPECT_EQ(task.support.target.sizes(), (Ids{5, 1}));
    EXPECT_EQ(task.query.data.sizes(), (Ids{7, 1}));
    EXPECT_EQ(task.query.data.scalar_type(), torch::kFloat);
    EXPECT_EQ(task.query.target.scalar_type(), torch::kFloat);
    for (const auto& set : {task.support, task.query}) {
      for (int64_t k = 0; k < set.data.size(0); ++k) {
        const double x = set.data[k].item<float>();
        EXPECT_EQ(set.target[k].item<float>(), static_cast<float>(curve.amplitude * std::sin(x - curve.phase)));
      }
      EXPECT_TRUE(torch::allclose(set.target, curve.amplitude * (set.data - curve.phase).sin(), 1e-4, 1e-5));
    }
  }
}

TEST(Sinusoid, parameters_are_uniform_over_their_ranges) {
  const Sinusoid source(SinusoidOptions().shots(2).queries(1).seed(8));
  const auto bin = [](double value, double low, double high) {
    EXPECT_GE(value, low);
    EXPECT_LE(value, high);
    return std::min<int64_t>(static_cast<int64_t>((value - low) / (high - low) * 10), 9);
  };
  Ids amplitude(10), phase(10), x(10);
  for (int64_t i = 0; i < 5000; ++i) {
    const auto curve = source.curve(i);
    ++amplitude[bin(curve.amplitude, 0.1, 5)];
    ++phase[bin(curve.phase, 0, M_PI)];
    ++x[bin(source.task(i).support.data[0].item<float>(), -5, 5)];
  }
  EXPECT_LT(chi_square(amplitude), 27.9);
  EXPECT_LT(chi_square(phase), 27.9);
  EXPECT_LT(chi_square(x), 27.9);
}

TEST(Sinusoid, options) {
  const auto few = Sinusoid(SinusoidOptions().queries(3)).task(2);
  const auto many = Sinusoid(SinusoidOptions().queries(30)).task(2);
  EXPECT_TRUE(torch::equal(few.support.data, many.support.data));
  EXPECT_TRUE(torch::equal(few.query.data, many.query.data.slice(0, 0, 3)));
  EXPECT_FALSE(torch::equal(few.support.data, Sinusoid(SinusoidOptions().seed(1)).task(2).support.data));
  const auto fixed = Sinusoid(SinusoidOptions().amplitude({2, 2}).phase({1, 1}).x({-3, -2})).task(0);
  EXPECT_TRUE(fixed.support.data.le(-2).logical_and(fixed.support.data.ge(-3)).all().item<bool>());
  EXPECT_TRUE(torch::allclose(fixed.support.target, 2 * (fixed.support.data - 1).sin()));
}

TEST(Sinusoid, bad_input) {
  const auto make = [](SinusoidOptions options) { return message_of([=] { Sinusoid source(options); }); };
  EXPECT_EQ(make(SinusoidOptions().shots(0)), "Sinusoid: expected at least 1 shot, got 0");
  EXPECT_EQ(make(SinusoidOptions().queries(-2)), "Sinusoid: expected at least 0 queries, got -2");
  EXPECT_EQ(make(SinusoidOptions().phase({2, 1})),
            "Sinusoid: expected a finite range of phase with low <= high, got [2, 1]");
  EXPECT_EQ(make(SinusoidOptions().x({0, INFINITY})),
            "Sinusoid: expected a finite range of x with low <= high, got [0, inf]");
  EXPECT_EQ(make(SinusoidOptions().amplitude({NAN, 1})),
            "Sinusoid: expected a finite range of amplitude with low <= high, got [nan, 1]");
  EXPECT_EQ(message_of([] { Sinusoid().task(-1); }), "Sinusoid: expected a task index of at least 0, got -1");
}

TEST(CacheFile, default_folder) {
  const std::vector<const char*> names = {"GIMLI_CACHE", "XDG_CACHE_HOME", "HOME"};
  std::vector<std::optional<std::string>> before;
  for (const char* name : names) {
    const char* value = std::getenv(name);
    before.push_back(value ? std::optional<std::string>(value) : std::nullopt);
    setenv(name, (std::string("/of/") + name).c_str(), 1);
  }
  EXPECT_EQ(default_cache_dir(), fs::path("/of/GIMLI_CACHE"));
  unsetenv("GIMLI_CACHE");
  EXPECT_EQ(default_cache_dir(), fs::path("/of/XDG_CACHE_HOME/gimli"));
  setenv("XDG_CACHE_HOME", "", 1);
  EXPECT_EQ(default_cache_dir(), fs::path("/of/HOME/.cache/gimli"));
  unsetenv("HOME");
  EXPECT_EQ(default_cache_dir(), std::nullopt);
  for (size_t i = 0; i < names.size(); ++i) {
    before[i] ? setenv(names[i], before[i]->c_str(), 1) : unsetenv(names[i]);
  }
}

TEST(CacheFile, checksum_sees_every_byte) {
  std::set<uint64_t> seen;
  std::string bytes(1000, 'a');
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = 'b';
    seen.insert(checksum(bytes));
    bytes[i] = 'a';
    seen.insert(checksum(std::string_view(bytes).substr(0, i)));
  }
  EXPECT_EQ(seen.size(), 2000u);
  EXPECT_NE(checksum(bytes, 0), checksum(bytes, 1));
}
