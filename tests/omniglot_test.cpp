#include "gimli/data/omniglot.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <numeric>
#include <set>

#include "gimli/data/cache_file.h"
#include "gimli/data/counter_rng.h"
#include "omniglot_files.h"

using namespace gimli::data;
using testing::Test;

using gimli::message_of;

namespace {

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
  EXPECT_EQ(a.validation_classes, b.validation_classes);
  EXPECT_EQ(a.test_classes, b.test_classes);
}

}  // namespace

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
  EXPECT_TRUE(data.validation_classes.empty());
}

TEST_F(Omniglot, validation_split_is_taken_from_training) {
  write_omniglot(root());
  const auto data = load_omniglot(options());
  const auto split = load_omniglot(options().validation_classes(2));
  EXPECT_EQ(split.test_classes, data.test_classes);
  EXPECT_EQ(split.train_classes.size(), 3u);
  EXPECT_EQ(split.validation_classes.size(), 2u);
  auto both = split.train_classes;
  both.insert(both.end(), split.validation_classes.begin(), split.validation_classes.end());
  std::sort(both.begin(), both.end());
  EXPECT_EQ(both, data.train_classes);
  EXPECT_EQ(summarize(split).validation_characters, 2);
  expect_parts(describe(summarize(split)), {"characters  8 (3 to train, 2 to validate, 3 to test)\n"});

  const auto classes = image_classes(split, OmniglotSplit::kValidation);
  ASSERT_EQ(classes.classes.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const auto row = split.validation_classes[i];
    EXPECT_EQ(classes.classes[i],
              (ImageClass{kCharacters[row].alphabet + "/" + kCharacters[row].name, row * kDrawings, kDrawings}));
    EXPECT_TRUE(torch::equal(classes.images[row * kDrawings + 1][0], split.images[row][1]));
  }
}

TEST_F(Omniglot, tasks) {
  write_omniglot(root());
  const auto data = load_omniglot(options());
  const auto validated = load_omniglot(options().train_classes(7).validation_classes(3));
  const auto episodes = EpisodeSamplerOptions(3, 1).queries(2).seed(5);
  const auto check = [&](const OmniglotData& data, OmniglotSplit split, std::optional<bool> rotations, int64_t turns,
                         const Ids& characters) {
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
  check(data, OmniglotSplit::kTrain, std::nullopt, 4, data.train_classes);
  check(data, OmniglotSplit::kTrain, false, 1, data.train_classes);
  check(data, OmniglotSplit::kTest, std::nullopt, 1, data.test_classes);
  check(data, OmniglotSplit::kTest, true, 4, data.test_classes);
  check(validated, OmniglotSplit::kValidation, std::nullopt, 1, validated.validation_classes);
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
  EXPECT_EQ(load([](auto& entry) { entry.bytes.resize(entry.bytes.size() / 2); }).find("decode_image: " + file), 0u);
  EXPECT_EQ(load([](auto& entry) { entry.bytes = "text"; }).find("decode_image: " + file), 0u);
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
  EXPECT_EQ(message_of([&] { load_omniglot(options().validation_classes(5)); }),
            "load_omniglot: expected from 0 to 4 validation characters, fewer than the 5 for training that they are "
            "taken from, got 5");
}

// The whole data set where it is at hand. The expected numbers come from a PNG decoder and an area average in Python,
// with exact fractions.
TEST(OmniglotWhole, counts_pixels_and_split) {
  const auto root = data_root();
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
  auto with_validation = options;
  const auto split = load_omniglot(with_validation.validation_classes(50));
  EXPECT_EQ(split.train_classes.size(), 1150u);
  EXPECT_EQ(split.validation_classes.size(), 50u);
  EXPECT_EQ(split.test_classes, data.test_classes);

  const OmniglotTasks tasks(data, OmniglotSplit::kTrain, EpisodeSamplerOptions(20, 5));
  EXPECT_EQ(tasks.class_count(), 4800);
  EXPECT_EQ(tasks.task(0).query.data.sizes(), (Ids{300, 1, 28, 28}));
}
