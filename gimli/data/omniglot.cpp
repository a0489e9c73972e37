#include "gimli/data/omniglot.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <iomanip>
#include <map>
#include <set>
#include <sstream>
#include <tuple>

#include "gimli/data/archive.h"
#include "gimli/data/cache_file.h"
#include "gimli/data/counter_rng.h"
#include "gimli/data/image_file.h"

namespace gimli::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kScannedSize = 105;
constexpr int64_t kSize = 28;
constexpr uint64_t kCacheVersion = 1;
constexpr const char* kArchives[] = {"background", "evaluation"};

std::string file_name(const std::string& archive) { return "images_" + archive + ".zip"; }

fs::path find_archive(const fs::path& root, const std::string& archive) {
  const auto name = file_name(archive);
  for (const auto& path : {root / name, root / "omniglot" / name}) {
    std::error_code error;
    if (fs::is_regular_file(path, error)) return path;
  }
  const std::string address = "https://github.com/brendenlake/omniglot/raw/master/python/";
  TORCH_CHECK(false, "load_omniglot: found neither ", root / name, " nor ", root / "omniglot" / name, "; expected ",
              file_name(kArchives[0]), " and ", file_name(kArchives[1]),
              " in the data root or in its folder omniglot, as published at ", address, file_name(kArchives[0]),
              " and ", address, file_name(kArchives[1]));
}

struct Drawing {
  std::string file;
  std::string png;
};

using Key = std::tuple<std::string, std::string>;  // alphabet, character
using Drawings = std::map<Key, std::vector<Drawing>>;

Drawings sort_entries(std::vector<ArchiveEntry> entries, const std::string& archive, const fs::path& path) {
  Drawings drawings;
  const auto top = "images_" + archive;
  for (auto& entry : entries) {
    const fs::path name = entry.name;
    const std::vector<std::string> parts(name.begin(), name.end());
    if (parts.size() != 4 || parts[0] != top || parts[3].starts_with('.') || name.extension() != ".png") continue;
    drawings[{parts[1], parts[2]}].push_back({parts[3], std::move(entry.bytes)});
  }
  TORCH_CHECK(!drawings.empty(), "load_omniglot: expected files ", top, "/<alphabet>/<character>/<drawing>.png in ",
              path, ", found none");
  for (auto& [key, files] : drawings) {
    std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.file < b.file; });
  }
  return drawings;
}

void decode(const std::vector<Drawing>& drawings, const std::string& place, const at::Tensor& images) {
  for (size_t d = 0; d < drawings.size(); ++d) {
    const auto name = place + "/" + drawings[d].file;
    const auto gray = decode_image(drawings[d].png, 1, name);
    TORCH_CHECK(gray.size(1) == kScannedSize && gray.size(2) == kScannedSize, "load_omniglot: expected ", kScannedSize,
                "x", kScannedSize, " pixels, got ", gray.size(2), "x", gray.size(1), " in ", name);
    images[static_cast<int64_t>(d)].copy_(255 - resize_image(gray, kSize)[0]);
  }
}

struct Archive {
  std::string name;
  fs::path path;
  std::string bytes;
};

OmniglotData read_archives(const std::vector<Archive>& archives) {
  OmniglotData data;
  std::vector<std::vector<Drawing>> drawings;
  std::vector<std::string> places;
  for (const auto& archive : archives) {
    for (auto& [key, files] : sort_entries(read_zip(archive.bytes, archive.path), archive.name, archive.path)) {
      const auto& [alphabet, character] = key;
      places.push_back(archive.path.string() + ": images_" + archive.name + "/" + alphabet + "/" + character);
      TORCH_CHECK(drawings.empty() || drawings[0].size() == files.size(), "load_omniglot: expected ",
                  drawings.empty() ? 0 : drawings[0].size(), " drawings of every character, got ", files.size(), " in ",
                  places.back());
      data.characters.push_back({archive.name, alphabet, character});
      drawings.push_back(std::move(files));
    }
  }
  const auto count = static_cast<int64_t>(drawings.size());
  data.images = at::empty({count, static_cast<int64_t>(drawings[0].size()), kSize, kSize}, at::kByte);
  for (int64_t c = 0; c < count; ++c) decode(drawings[c], places[c], data.images[c]);
  return data;
}

std::string to_cache(const OmniglotData& data) {
  std::ostringstream text;
  text << data.images.size(0) << '\n' << data.images.size(1) << '\n';
  for (const auto& c : data.characters) text << c.archive << '\n' << c.alphabet << '\n' << c.name << '\n';
  auto content = std::move(text).str();
  content.append(reinterpret_cast<const char*>(data.images.const_data_ptr<uint8_t>()), data.images.numel());
  return content;
}

// The content's checksum is right: it is what to_cache made.
OmniglotData from_cache(const std::string& content) {
  OmniglotData data;
  size_t position = 0;
  const auto line = [&] {
    const size_t end = content.find('\n', position);
    TORCH_INTERNAL_ASSERT(end != std::string::npos);
    auto text = content.substr(position, end - position);
    position = end + 1;
    return text;
  };
  const int64_t characters = std::stoll(line());
  const int64_t drawings = std::stoll(line());
  for (int64_t c = 0; c < characters; ++c) {
    auto archive = line(), alphabet = line(), name = line();
    data.characters.push_back({std::move(archive), std::move(alphabet), std::move(name)});
  }
  data.images = at::empty({characters, drawings, kSize, kSize}, at::kByte);
  TORCH_INTERNAL_ASSERT(content.size() - position == static_cast<size_t>(data.images.numel()));
  std::memcpy(data.images.mutable_data_ptr<uint8_t>(), content.data() + position, content.size() - position);
  return data;
}

std::optional<fs::path> cache_path(const OmniglotOptions& options, const std::vector<Archive>& archives) {
  if (!options.cache()) return std::nullopt;
  const auto folder = options.cache_dir().empty() ? default_cache_dir() : fs::path(options.cache_dir());
  if (!folder) return std::nullopt;
  uint64_t key = kCacheVersion;
  for (const auto& archive : archives) key = checksum(archive.bytes, key);
  std::ostringstream name;
  name << "omniglot-" << kSize << 'x' << kSize << '-' << std::hex << std::setfill('0') << std::setw(16) << key
       << ".bin";
  return *folder / name.str();
}

OmniglotData read_cached(const OmniglotOptions& options) {
  std::vector<Archive> archives;
  for (const std::string name : kArchives) {
    auto path = find_archive(options.data_root(), name);
    auto bytes = read_file(path);
    archives.push_back({name, std::move(path), std::move(bytes)});
  }
  const auto path = cache_path(options, archives);
  if (path) {
    if (const auto content = read_cache_file(*path)) return from_cache(*content);
  }
  auto data = read_archives(archives);
  if (path) write_cache_file(*path, to_cache(data));
  return data;
}

const std::vector<int64_t>& rows(const OmniglotData& data, OmniglotSplit split) {
  switch (split) {
    case OmniglotSplit::kTrain:
      return data.train_classes;
    case OmniglotSplit::kValidation:
      return data.validation_classes;
    default:
      return data.test_classes;
  }
}

}  // namespace

OmniglotData load_omniglot(const OmniglotOptions& options) {
  TORCH_CHECK(options.train_classes() >= 1, "load_omniglot: expected at least 1 training character, got ",
              options.train_classes());
  TORCH_CHECK(options.validation_classes() >= 0 && options.validation_classes() < options.train_classes(),
              "load_omniglot: expected from 0 to ", options.train_classes() - 1,
              " validation characters, fewer than the ", options.train_classes(),
              " for training that they are taken from, got ", options.validation_classes());
  auto data = read_cached(options);
  const int64_t count = data.images.size(0);
  TORCH_CHECK(count > options.train_classes(), "load_omniglot: ", options.train_classes(),
              " characters for training leave none for testing, got ", count);
  auto order = CounterRng(options.split_seed(), 0).choose(count, count);
  const auto test = order.begin() + options.train_classes();
  const auto validation = test - options.validation_classes();
  data.train_classes.assign(order.begin(), validation);
  data.validation_classes.assign(validation, test);
  data.test_classes.assign(test, order.end());
  for (auto* classes : {&data.train_classes, &data.validation_classes, &data.test_classes}) {
    std::sort(classes->begin(), classes->end());
  }
  return data;
}

OmniglotSummary summarize(const OmniglotData& data) {
  std::set<Key> alphabets;
  for (const auto& character : data.characters) alphabets.insert({character.archive, character.alphabet});
  const double ink = static_cast<double>(data.images.sum(at::kLong).item<int64_t>()) / 255;
  return {.alphabets = static_cast<int64_t>(alphabets.size()),
          .characters = data.images.size(0),
          .drawings = data.images.size(0) * data.images.size(1),
          .image_size = data.images.size(2),
          .mean_ink = ink / static_cast<double>(data.images.numel()),
          .train_characters = static_cast<int64_t>(data.train_classes.size()),
          .validation_characters = static_cast<int64_t>(data.validation_classes.size()),
          .test_characters = static_cast<int64_t>(data.test_classes.size())};
}

std::string describe(const OmniglotSummary& summary) {
  std::ostringstream text;
  text << "alphabets   " << summary.alphabets << '\n'
       << "characters  " << summary.characters << " (" << summary.train_characters << " to train, ";
  if (summary.validation_characters > 0) text << summary.validation_characters << " to validate, ";
  text << summary.test_characters << " to test)\n"
       << "drawings    " << summary.drawings << '\n'
       << "image size  " << summary.image_size << 'x' << summary.image_size << '\n'
       << "mean ink    " << std::fixed << std::setprecision(4) << summary.mean_ink << '\n';
  return text.str();
}

ImageClasses image_classes(const OmniglotData& data, OmniglotSplit split) {
  const int64_t drawings = data.images.size(1);
  ImageClasses result{data.images.view({-1, 1, data.images.size(2), data.images.size(3)}), {}};
  for (const int64_t row : rows(data, split)) {
    const auto& character = data.characters[row];
    result.classes.push_back({character.alphabet + "/" + character.name, row * drawings, drawings});
  }
  return result;
}

OmniglotTasks::OmniglotTasks(const OmniglotData& data, OmniglotSplit split, EpisodeSamplerOptions episodes,
                             std::optional<bool> rotations)
    : tasks_(image_classes(data, split), episodes,
             ImageTasksOptions().rotations(rotations.value_or(split == OmniglotSplit::kTrain))) {}

}  // namespace gimli::data
