#include <archive.h>
#include <archive_entry.h>
#include <gtest/gtest.h>
#include <png.h>
#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <set>
#include <thread>

#include "expect.h"
#include "gimli/data/archive.h"
#include "gimli/data/cache_file.h"
#include "gimli/data/counter_rng.h"
#include "gimli/data/episode_sampler.h"
#include "gimli/data/omniglot.h"
#include "gimli/data/png_image.h"
#include "gimli/data/sinusoid.h"

namespace fs = std::filesystem;
using namespace gimli::data;
using testing::Test;

using gimli::message_of;

namespace {

using Ids = std::vector<int64_t>;

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const auto& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks: " << part;
}

double chi_square(const Ids& counts) {
  int64_t total = 0;
  for (const auto count : counts) total += count;
  const double expected = static_cast<double>(total) / static_cast<double>(counts.size());
  double sum = 0;
  for (const auto count : counts) sum += std::pow(static_cast<double>(count) - expected, 2) / expected;
  return sum;
}

void expect_equal(const Task& a, const Task& b) {
  EXPECT_TRUE(torch::equal(a.support.data, b.support.data));
  EXPECT_TRUE(torch::equal(a.support.target, b.support.target));
  EXPECT_TRUE(torch::equal(a.query.data, b.query.data));
  EXPECT_TRUE(torch::equal(a.query.target, b.query.target));
}

// The same tasks in any order, again, and from two threads at once.
void expect_pure(const TaskSource& source) {
  constexpr int64_t kCount = 24;
  std::vector<Task> forward, backward(kCount), first(kCount), second(kCount);
  for (int64_t i = 0; i < kCount; ++i) forward.push_back(source.task(i));
  for (int64_t i = kCount - 1; i >= 0; --i) backward[i] = source.task(i);
  std::thread other([&] {
    for (int64_t i = 0; i < kCount; ++i) first[i] = source.task(i);
  });
  for (int64_t i = kCount - 1; i >= 0; --i) second[i] = source.task(i);
  other.join();
  for (int64_t i = 0; i < kCount; ++i) {
    expect_equal(forward[i], backward[i]);
    expect_equal(forward[i], first[i]);
    expect_equal(forward[i], second[i]);
    EXPECT_EQ(i > 0 && torch::equal(forward[i].support.data, forward[i - 1].support.data), false);
  }
}

}  // namespace

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

namespace {

using Rows = std::vector<std::vector<uint8_t>>;

std::string write_png(const Rows& rows, int64_t width, int depth, int color_type) {
  std::string file;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  const auto append = [](png_structp p, png_bytep bytes, png_size_t size) {
    static_cast<std::string*>(png_get_io_ptr(p))->append(reinterpret_cast<char*>(bytes), size);
  };
  png_set_write_fn(png, &file, append, nullptr);
  png_set_IHDR(png, info, width, rows.size(), depth, color_type, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  const png_color palette[] = {{255, 255, 255}, {0, 0, 0}};
  if (color_type == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, palette, 2);
  png_write_info(png, info);
  for (const auto& row : rows) png_write_row(png, row.data());
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return file;
}

// `ink` uint8 [height, width] of 0 and 1, as a 1-bit PNG where paper is 1.
std::string write_drawing(const torch::Tensor& ink) {
  const auto pixel = ink.accessor<uint8_t, 2>();
  Rows rows;
  for (int64_t y = 0; y < ink.size(0); ++y) {
    std::vector<uint8_t> row((ink.size(1) + 7) / 8, 0);
    for (int64_t x = 0; x < ink.size(1); ++x) {
      if (!pixel[y][x]) row[x / 8] |= 0x80 >> (x % 8);
    }
    rows.push_back(row);
  }
  return write_png(rows, ink.size(1), 1, PNG_COLOR_TYPE_GRAY);
}

void write_file(const fs::path& path, const std::string& bytes) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

void write_zip(const fs::path& path, const std::vector<ArchiveEntry>& entries) {
  fs::create_directories(path.parent_path());
  archive* writer = archive_write_new();
  archive_write_set_format_zip(writer);
  ASSERT_EQ(archive_write_open_filename(writer, path.c_str()), ARCHIVE_OK);
  for (const auto& [name, bytes] : entries) {
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, name.c_str());
    archive_entry_set_filetype(entry, name.ends_with('/') ? AE_IFDIR : AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_size(entry, static_cast<int64_t>(bytes.size()));
    ASSERT_EQ(archive_write_header(writer, entry), ARCHIVE_OK);
    archive_write_data(writer, bytes.data(), bytes.size());
    archive_entry_free(entry);
  }
  archive_write_close(writer);
  archive_write_free(writer);
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    auto name = (fs::temp_directory_path() / "gimli-data-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

constexpr int64_t kDrawings = 4;

// Drawing d of character c: noise whose density grows with both, so that no two are alike.
torch::Tensor ink_of(int64_t c, int64_t d) {
  CounterRng rng(c, d);
  auto ink = torch::zeros({105, 105}, torch::kByte);
  auto pixel = ink.accessor<uint8_t, 2>();
  for (int64_t y = 0; y < 105; ++y) {
    for (int64_t x = 0; x < 105; ++x) pixel[y][x] = rng.below(40) <= c + d;
  }
  return ink;
}

// The area average in whole numbers, one target pixel at a time.
torch::Tensor shrunk(const torch::Tensor& ink) {
  auto image = torch::zeros({28, 28}, torch::kByte);
  const auto source = ink.accessor<uint8_t, 2>();
  for (int64_t y = 0; y < 28; ++y) {
    for (int64_t x = 0; x < 28; ++x) {
      int64_t sum = 0;  // over quarters of quarters: 28 / 105 is 4 / 15, so a source pixel is 4 units wide
      for (int64_t v = 15 * y; v < 15 * (y + 1); ++v) {
        for (int64_t u = 15 * x; u < 15 * (x + 1); ++u) sum += source[v / 4][u / 4];
      }
      image[y][x] = static_cast<uint8_t>((255 * sum + 112) / 225);
    }
  }
  return image;
}

const std::vector<OmniglotCharacter> kCharacters = {
    {"background", "Latin", "character01"}, {"background", "Latin", "character02"},
    {"background", "Latin", "character03"}, {"background", "Runes", "character01"},
    {"background", "Runes", "character02"}, {"evaluation", "Greek", "character01"},
    {"evaluation", "Greek", "character02"}, {"evaluation", "Latin", "character01"},
};

using Edit = std::function<void(std::vector<ArchiveEntry>& background, std::vector<ArchiveEntry>& evaluation)>;

// Small archives in the official layout, their entries in reverse order and with what an operating system leaves there.
void write_omniglot(const fs::path& root, const Edit& edit = nullptr) {
  std::vector<ArchiveEntry> entries[2];
  for (size_t c = kCharacters.size(); c-- > 0;) {
    const auto& character = kCharacters[c];
    auto& list = entries[character.archive == "evaluation"];
    const auto folder = "images_" + character.archive + "/" + character.alphabet + "/" + character.name + "/";
    for (int64_t d = kDrawings - 1; d >= 0; --d) {
      const auto name = "000" + std::to_string(c) + "_0" + std::to_string(d + 1) + ".png";
      list.push_back({folder + name, write_drawing(ink_of(static_cast<int64_t>(c), d))});
    }
    list.push_back({folder + ".DS_Store", "junk"});
    list.push_back({folder + "._0001_01.png", "junk"});
    list.push_back({"__MACOSX/" + folder + "0001_01.png", "junk"});
    list.push_back({folder, ""});
  }
  if (edit) edit(entries[0], entries[1]);
  write_zip(root / "images_background.zip", entries[0]);
  write_zip(root / "images_evaluation.zip", entries[1]);
}

// The drawing of Runes/character02 by the third person.
ArchiveEntry& runes(std::vector<ArchiveEntry>& entries) {
  for (auto& entry : entries) {
    if (entry.name == "images_background/Runes/character02/0004_03.png") return entry;
  }
  throw std::logic_error("no such entry");
}

class Omniglot : public Test {
 protected:
  OmniglotOptions options() const {
    return OmniglotOptions(root().string()).cache_dir(cache().string()).train_classes(5);
  }
  fs::path root() const { return folder_.path() / "data"; }
  fs::path cache() const { return folder_.path() / "cache"; }
  fs::path cache_file() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(cache())) files.push_back(entry.path());
    EXPECT_EQ(files.size(), 1u);
    return files.at(0);
  }

 private:
  TemporaryFolder folder_;
};

void expect_equal(const OmniglotData& a, const OmniglotData& b) {
  EXPECT_TRUE(torch::equal(a.images, b.images));
  EXPECT_EQ(a.characters, b.characters);
  EXPECT_EQ(a.train_classes, b.train_classes);
  EXPECT_EQ(a.test_classes, b.test_classes);
}

}  // namespace

TEST(PngImage, every_colour_type_becomes_gray) {
  Rows ramp(1);
  for (int v = 0; v < 256; ++v) ramp[0].push_back(static_cast<uint8_t>(v));
  const auto identity = torch::arange(256, torch::kLong).to(torch::kByte).unsqueeze(0);
  EXPECT_TRUE(torch::equal(decode_gray_png(write_png(ramp, 256, 8, PNG_COLOR_TYPE_GRAY), "ramp"), identity));

  const auto decode = [](const Rows& rows, int64_t width, int depth, int color_type) {
    const auto gray = decode_gray_png(write_png(rows, width, depth, color_type), "png").to(torch::kLong);
    return Ids(gray.const_data_ptr<int64_t>(), gray.const_data_ptr<int64_t>() + gray.numel());
  };
  EXPECT_EQ(decode({{0b10100000}}, 3, 1, PNG_COLOR_TYPE_GRAY), (Ids{255, 0, 255}));
  EXPECT_EQ(decode({{0b10100000}}, 3, 1, PNG_COLOR_TYPE_PALETTE), (Ids{0, 255, 0}));
  EXPECT_EQ(decode({{0, 0, 0, 255, 255, 255, 119, 119, 119}}, 3, 8, PNG_COLOR_TYPE_RGB), (Ids{0, 255, 119}));
  EXPECT_EQ(decode({{0, 0, 0, 255, 0, 0, 0, 0}}, 2, 8, PNG_COLOR_TYPE_RGB_ALPHA), (Ids{0, 255}));
  EXPECT_EQ(decode({{0, 255, 0, 0}}, 2, 8, PNG_COLOR_TYPE_GRAY_ALPHA), (Ids{0, 255}));
  EXPECT_EQ(decode({{0, 0, 255, 255}}, 2, 16, PNG_COLOR_TYPE_GRAY), (Ids{0, 255}));
}

TEST(PngImage, bad_input) {
  EXPECT_EQ(message_of([] { decode_gray_png("not a png", "x.png"); }).find("decode_gray_png: x.png is "), 0u);
  EXPECT_EQ(message_of([] { decode_gray_png("", "x.png"); }).find("decode_gray_png: x.png is "), 0u);
  const auto file = write_drawing(ink_of(0, 0));
  for (size_t size = 0; size < file.size(); size += 97) {
    EXPECT_EQ(message_of([&] { decode_gray_png(file.substr(0, size), "x.png"); }).find("decode_gray_png: x.png is "),
              0u)
        << size;
  }
  auto flipped = file;
  flipped[file.size() / 2] ^= 1;
  EXPECT_EQ(message_of([&] { decode_gray_png(flipped, "x.png"); }).find("decode_gray_png: x.png is damaged: "), 0u);
}

TEST_F(Omniglot, reads_sorts_and_averages) {
  write_omniglot(root());
  const auto data = load_omniglot(options().cache(false));
  EXPECT_EQ(data.characters, kCharacters);
  ASSERT_EQ(data.images.sizes(), (Ids{8, kDrawings, 28, 28}));
  EXPECT_EQ(data.images.scalar_type(), torch::kByte);
  for (int64_t c = 0; c < 8; ++c) {
    for (int64_t d = 0; d < kDrawings; ++d) EXPECT_TRUE(torch::equal(data.images[c][d], shrunk(ink_of(c, d))));
  }
  EXPECT_FALSE(fs::exists(cache()));
}

TEST_F(Omniglot, a_folder_below_the_root_will_do) {
  write_omniglot(root());
  const auto data = load_omniglot(options());
  fs::rename(root(), root().parent_path() / "omniglot");
  expect_equal(load_omniglot(options().data_root(root().parent_path().string())), data);
}

TEST_F(Omniglot, split) {
  write_omniglot(root());
  const auto data = load_omniglot(options());
  EXPECT_EQ(data.train_classes.size(), 5u);
  EXPECT_EQ(data.test_classes.size(), 3u);
  std::set<int64_t> all(data.train_classes.begin(), data.train_classes.end());
  all.insert(data.test_classes.begin(), data.test_classes.end());
  EXPECT_EQ(all.size(), 8u);
  EXPECT_EQ(data.train_classes, (Ids{0, 1, 2, 3, 7}));
  EXPECT_NE(load_omniglot(options().split_seed(1)).train_classes, data.train_classes);
  EXPECT_EQ(load_omniglot(options().train_classes(7)).test_classes.size(), 1u);
}

TEST_F(Omniglot, tasks) {
  write_omniglot(root());
  const auto data = load_omniglot(options());
  const auto episodes = EpisodeSamplerOptions(3, 1).queries(2).seed(5);
  const auto check = [&](OmniglotSplit split, std::optional<bool> rotations, int64_t turns, const Ids& characters) {
    const OmniglotTasks tasks(data, split, episodes, rotations);
    EXPECT_EQ(tasks.class_count(), turns * static_cast<int64_t>(characters.size()));
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 40; ++i) {
      const auto task = tasks.task(i);
      const auto episode = tasks.episode(i);
      EXPECT_EQ(task.support.data.sizes(), (Ids{3, 1, 28, 28}));
      EXPECT_EQ(task.query.data.sizes(), (Ids{6, 1, 28, 28}));
      EXPECT_EQ(task.support.data.scalar_type(), torch::kFloat);
      EXPECT_TRUE(torch::equal(task.support.target, torch::tensor({0, 1, 2}, torch::kLong)));
      EXPECT_TRUE(torch::equal(task.query.target, torch::tensor({0, 0, 1, 1, 2, 2}, torch::kLong)));
      for (int64_t w = 0; w < 3; ++w) {
        const auto id = episode.classes[w];
        const auto drawings = data.images[characters[id / turns]];
        const auto expected = [&](int64_t example) {
          return drawings[example].to(torch::kFloat).div(255).rot90(id % turns);
        };
        seen.insert(id);
        EXPECT_TRUE(torch::equal(task.support.data[w][0], expected(episode.support[w])));
        for (int64_t q = 2 * w; q < 2 * w + 2; ++q) {
          EXPECT_TRUE(torch::equal(task.query.data[q][0], expected(episode.query[q])));
        }
      }
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), tasks.class_count());
  };
  check(OmniglotSplit::kTrain, std::nullopt, 4, data.train_classes);
  check(OmniglotSplit::kTrain, false, 1, data.train_classes);
  check(OmniglotSplit::kTest, std::nullopt, 1, data.test_classes);
  check(OmniglotSplit::kTest, true, 4, data.test_classes);
}

TEST_F(Omniglot, tasks_are_pure) {
  write_omniglot(root());
  const auto data = load_omniglot(options());
  expect_pure(OmniglotTasks(data, OmniglotSplit::kTrain, EpisodeSamplerOptions(5, 1).queries(2)));
  const auto support_only = OmniglotTasks(data, OmniglotSplit::kTest, EpisodeSamplerOptions(3, 4).queries(0)).task(0);
  EXPECT_EQ(support_only.support.data.sizes(), (Ids{12, 1, 28, 28}));
  EXPECT_EQ(support_only.query.data.sizes(), (Ids{0, 1, 28, 28}));
  EXPECT_EQ(message_of([&] { OmniglotTasks(data, OmniglotSplit::kTest, EpisodeSamplerOptions(5, 1).queries(2)); }),
            "EpisodeSampler: 5 ways need as many classes, got 3");
}

TEST_F(Omniglot, summary) {
  write_omniglot(root());
  const auto data = load_omniglot(options());
  const auto summary = summarize(data);
  EXPECT_EQ(summary.alphabets, 4);  // the archives' Latin are two
  EXPECT_EQ(summary.characters, 8);
  EXPECT_EQ(summary.drawings, 32);
  EXPECT_EQ(summary.image_size, 28);
  EXPECT_EQ(summary.train_characters, 5);
  EXPECT_EQ(summary.test_characters, 3);
  double ink = 0;
  for (int64_t c = 0; c < 8; ++c) {
    for (int64_t d = 0; d < kDrawings; ++d) ink += ink_of(c, d).to(torch::kDouble).mean().item<double>() / 32;
  }
  EXPECT_NEAR(summary.mean_ink, ink, 1e-3);
  expect_parts(describe(summary), {"alphabets   4\n", "characters  8 (5 to train, 3 to test)\n", "drawings    32\n",
                                   "image size  28x28\n", "mean ink    0.1"});
}

TEST_F(Omniglot, cache_is_used_and_knows_the_archives_by_content) {
  write_omniglot(root());
  const auto data = load_omniglot(options());
  const auto file = cache_file();
  expect_equal(load_omniglot(options()), data);

  auto content = read_cache_file(file);
  ASSERT_TRUE(content);
  content->back() = '\x2a';
  ASSERT_TRUE(write_cache_file(file, *content));
  EXPECT_EQ(load_omniglot(options()).images[-1][-1][-1][-1].item<int>(), 42) << "the cache was not read";
  EXPECT_NE(load_omniglot(options().cache(false)).images[-1][-1][-1][-1].item<int>(), 42);

  fs::copy(root(), root().parent_path() / "copy");
  fs::last_write_time(root().parent_path() / "copy" / "images_background.zip",
                      fs::file_time_type::clock::now() - std::chrono::hours(99));
  EXPECT_EQ(
      load_omniglot(options().data_root((root().parent_path() / "copy").string())).images[-1][-1][-1][-1].item<int>(),
      42);

  write_omniglot(root(), [](auto& background, auto&) { runes(background).bytes = write_drawing(ink_of(30, 0)); });
  const auto changed = load_omniglot(options());
  EXPECT_TRUE(torch::equal(changed.images[4][2], shrunk(ink_of(30, 0))));
  EXPECT_EQ(std::distance(fs::directory_iterator(cache()), fs::directory_iterator()), 2);
}

TEST_F(Omniglot, damaged_cache_is_made_again) {
  write_omniglot(root());
  const auto data = load_omniglot(options());
  const auto file = cache_file();
  const auto good = read_file(file);
  std::vector<std::string> damaged = {"", "x", good.substr(0, good.size() - 1), good.substr(0, 24), good + "x"};
  for (size_t i = 0; i < good.size(); i += 7 + good.size() / 20) {
    damaged.push_back(good);
    damaged.back()[i] ^= 0x10;
  }
  for (const auto& bytes : damaged) {
    write_file(file, bytes);
    expect_equal(load_omniglot(options()), data);
    EXPECT_EQ(read_file(cache_file()), good);
  }
  fs::remove(file);
  fs::create_directories(file / "folder");  // cannot be replaced
  expect_equal(load_omniglot(options()), data);
  EXPECT_TRUE(fs::is_directory(cache_file())) << "a temporary file was left behind";
}

TEST_F(Omniglot, cache_that_cannot_be_written_is_no_error) {
  write_omniglot(root());
  const auto data = load_omniglot(options().cache(false));
  write_file(cache(), "a file where the folder should be");
  expect_equal(load_omniglot(options()), data);
  expect_equal(load_omniglot(options().cache_dir((cache() / "below").string())), data);
  fs::remove(cache());
  fs::create_directories(cache());
  fs::permissions(cache(), fs::perms::owner_read | fs::perms::owner_exec);
  expect_equal(load_omniglot(options()), data);
  fs::permissions(cache(), fs::perms::owner_all);
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

TEST_F(Omniglot, missing_archives) {
  const auto nothing = message_of([&] { load_omniglot(options()); });
  expect_parts(nothing, {"load_omniglot: found neither", (root() / "images_background.zip").string(),
                         (root() / "omniglot" / "images_background.zip").string(),
                         "https://github.com/brendenlake/omniglot/raw/master/python/images_background.zip and "
                         "https://github.com/brendenlake/omniglot/raw/master/python/images_evaluation.zip"});
  write_omniglot(root());
  fs::remove(root() / "images_evaluation.zip");
  expect_parts(message_of([&] { load_omniglot(options()); }),
               {"found neither", (root() / "images_evaluation.zip").string()});
}

TEST_F(Omniglot, damaged_archives) {
  write_omniglot(root());
  const auto path = root() / "images_background.zip";
  const auto good = read_file(path);
  const auto load = [&] { return message_of([&] { load_omniglot(options()); }); };

  write_file(path, good.substr(0, good.size() / 2));
  expect_parts(load(), {"read_zip: ", path.string(), "damaged", "images_background/"});
  auto flipped = good;
  const std::string name = "images_background/Runes/character02/0004_03.png";
  flipped.at(good.find(name) + name.size() + 400) ^= 0x55;
  write_file(path, flipped);
  expect_parts(load(), {"read_zip: ", path.string(), "damaged at entry " + name});
  write_file(path, "an error page instead of an archive");
  expect_parts(load(), {"read_zip: ", path.string(), "as a zip archive"});
  write_file(path, "");
  expect_parts(load(), {"read_zip: ", path.string()});
  write_zip(path, {{"another/layout.png", "x"}});
  expect_parts(load(), {"load_omniglot: expected files images_background/<alphabet>/<character>/<drawing>.png in ",
                        path.string(), ", found none"});
}

TEST_F(Omniglot, bad_images) {
  const auto load = [&](const std::function<void(ArchiveEntry&)>& edit) {
    write_omniglot(root(), [&](auto& background, auto&) { edit(runes(background)); });
    return message_of([&] { load_omniglot(options()); });
  };
  const auto place = (root() / "images_background.zip").string() + ": images_background/Runes/character02";
  const auto file = place + "/0004_03.png";
  EXPECT_EQ(load([](auto& entry) {
              entry.bytes = write_drawing(torch::zeros({105, 104}, torch::kByte));
            }),
            "load_omniglot: expected 105x105 pixels, got 104x105 in " + file);
  EXPECT_EQ(load([](auto& entry) { entry.bytes.resize(entry.bytes.size() / 2); }).find("decode_gray_png: " + file), 0u);
  EXPECT_EQ(load([](auto& entry) { entry.bytes = "text"; }).find("decode_gray_png: " + file), 0u);
  EXPECT_EQ(load([](auto& entry) { entry.name += ".bak"; }),
            "load_omniglot: expected 4 drawings of every character, got 3 in " + place);
  EXPECT_FALSE(fs::exists(cache()));
}

TEST_F(Omniglot, bad_options) {
  write_omniglot(root());
  EXPECT_EQ(message_of([&] { load_omniglot(options().train_classes(8)); }),
            "load_omniglot: 8 characters for training leave none for testing, got 8");
  EXPECT_EQ(message_of([&] { load_omniglot(options().train_classes(0)); }),
            "load_omniglot: expected at least 1 training character, got 0");
}

// The whole data set where it is at hand. The expected numbers come from a PNG decoder and an area average in Python,
// with exact fractions.
TEST(OmniglotWhole, counts_pixels_and_split) {
  const char* variable = std::getenv("GIMLI_DATA_ROOT");
  const fs::path root = variable ? fs::path(variable) : fs::path(GIMLI_SOURCE_DIR) / ".." / "shared" / "data";
  if (!fs::exists(root / "omniglot" / "images_background.zip") && !fs::exists(root / "images_background.zip")) {
    GTEST_SKIP() << "set GIMLI_DATA_ROOT to the folder of Omniglot's archives";
  }
  const TemporaryFolder folder;
  const auto options = OmniglotOptions(root.string()).cache_dir(folder.path().string());
  const auto data = load_omniglot(options);
  const auto summary = summarize(data);
  EXPECT_EQ(summary.alphabets, 50);
  EXPECT_EQ(summary.characters, 1623);
  EXPECT_EQ(summary.drawings, 32460);
  EXPECT_EQ(summary.train_characters, 1200);
  EXPECT_EQ(summary.test_characters, 423);
  EXPECT_NEAR(summary.mean_ink, 28814268. / (32460. * 105 * 105), 1e-5);

  const auto expect = [&](int64_t c, int64_t d, const OmniglotCharacter& character, int64_t sum, int64_t weighted) {
    const auto image = data.images[c][d].to(torch::kLong).flatten();
    EXPECT_EQ(data.characters[c], character);
    EXPECT_EQ(image.sum().item<int64_t>(), sum);
    EXPECT_EQ((image * torch::arange(1, 785)).sum().item<int64_t>(), weighted);
  };
  expect(0, 0, {"background", "Alphabet_of_the_Magi", "character01"}, 16413, 6955046);
  expect(963, 19, {"background", "Tifinagh", "character55"}, 9228, 3436835);
  expect(1622, 19, {"evaluation", "ULOG", "character26"}, 8249, 2671524);

  EXPECT_EQ(Ids(data.test_classes.begin(), data.test_classes.begin() + 8), (Ids{9, 10, 11, 14, 16, 17, 20, 25}));
  EXPECT_EQ(std::accumulate(data.test_classes.begin(), data.test_classes.end(), int64_t{0}), 348024);
  expect_equal(load_omniglot(options), data);

  const OmniglotTasks tasks(data, OmniglotSplit::kTrain, EpisodeSamplerOptions(20, 5));
  EXPECT_EQ(tasks.class_count(), 4800);
  EXPECT_EQ(tasks.task(0).query.data.sizes(), (Ids{300, 1, 28, 28}));
}
