#include "gimli/data/image_folder.h"

#include <ATen/Functions.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cmath>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iomanip>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "gimli/data/archive.h"
#include "gimli/data/cache_file.h"
#include "gimli/data/counter_rng.h"
#include "gimli/data/image_file.h"

namespace gimli::data {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kCacheVersion = 1;
constexpr const char* kCsvHeader = "filename,label";
constexpr const char* kSplits[] = {"train", "val", "test"};

using Classes = std::map<std::string, std::vector<fs::path>>;

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

bool is_folder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

bool is_image_name(const fs::path& path) {
  auto extension = path.extension().string();
  for (auto& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension == ".png" || extension == ".jpg" || extension == ".jpeg";
}

std::vector<fs::path> visible_entries(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> entries;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (!entry->path().filename().string().starts_with('.')) entries.push_back(entry->path());
  }
  TORCH_CHECK(!error, "load_image_folder: cannot list ", folder, ": ", error.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

Classes list_classes(const fs::path& folder) {
  Classes classes;
  for (const auto& place : visible_entries(folder)) {
    if (!is_folder(place)) continue;
    auto& files = classes[place.filename().string()];
    for (const auto& file : visible_entries(place)) {
      if (is_image_name(file) && is_file(file)) files.push_back(file);
    }
    TORCH_CHECK(!files.empty(), "load_image_folder: expected .png, .jpg or .jpeg files in ", place, ", found none");
  }
  TORCH_CHECK(!classes.empty(), "load_image_folder: expected a folder of images for each class in ", folder,
              ", found none");
  return classes;
}

Classes read_csv(const fs::path& root, const fs::path& path) {
  std::ifstream text(path);
  TORCH_CHECK(text, "load_image_folder: cannot open ", path);
  Classes classes;
  std::string line;
  for (int64_t number = 1; std::getline(text, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (number == 1) {
      TORCH_CHECK(line == kCsvHeader, "load_image_folder: expected `", kCsvHeader, "` in line 1 of ", path, ", got `",
                  line, "`");
      continue;
    }
    if (line.empty()) continue;
    const auto comma = line.find(',');
    TORCH_CHECK(comma != std::string::npos && comma > 0 && comma + 1 < line.size() &&
                    line.find(',', comma + 1) == std::string::npos,
                "load_image_folder: expected `", kCsvHeader, "` in line ", number, " of ", path, ", got `", line, "`");
    const auto name = line.substr(0, comma), label = line.substr(comma + 1);
    const auto flat = root / "images" / name, nested = root / "images" / label / name;
    const bool is_flat = is_file(flat);
    TORCH_CHECK(is_flat || is_file(nested), "load_image_folder: line ", number, " of ", path, " lists ", name,
                ", but there is neither ", flat, " nor ", nested);
    classes[label].push_back(is_flat ? flat : nested);
  }
  TORCH_CHECK(!classes.empty(), "load_image_folder: expected lines `", kCsvHeader, "` after the first of ", path,
              ", found none");
  for (auto& [label, files] : classes) {
    std::sort(files.begin(), files.end());
    const auto twice = std::adjacent_find(files.begin(), files.end());
    TORCH_CHECK(twice == files.end(), "load_image_folder: ", path, " lists ", *twice, " twice");
  }
  return classes;
}

// One of kSplits for each class that has a split.
struct Listing {
  std::vector<std::string> names;
  std::vector<size_t> splits;
  std::vector<std::vector<fs::path>> files;
};

Listing join(std::vector<Classes> parts) {
  std::map<std::string, size_t> split_of;
  Listing listing;
  for (size_t s = 0; s < parts.size(); ++s) {
    for (auto& [name, files] : parts[s]) {
      const auto [place, is_new] = split_of.emplace(name, s);
      TORCH_CHECK(is_new, "load_image_folder: class ", name, " is in ", kSplits[place->second], " and in ", kSplits[s]);
      listing.names.push_back(name);
      listing.splits.push_back(s);
      listing.files.push_back(std::move(files));
    }
  }
  return listing;
}

Listing split_at_random(Classes classes, const ImageFolderOptions& options) {
  const double validation_share = options.validation_share(), test_share = options.test_share();
  TORCH_CHECK(validation_share >= 0 && test_share > 0 && validation_share + test_share < 1,
              "load_image_folder: expected a validation_share of at least 0 and a test_share above 0 that leave "
              "something for training, got ",
              validation_share, " and ", test_share);
  const auto count = static_cast<int64_t>(classes.size());
  const auto part = [&](double share) { return std::llround(share * static_cast<double>(count)); };
  const int64_t validation = part(validation_share), test = part(test_share), train = count - validation - test;
  TORCH_CHECK(train > 0 && test > 0 && (validation > 0 || validation_share == 0), "load_image_folder: the shares of ",
              count, " classes in ", fs::path(options.data_root()), " come to ", train, " for training, ", validation,
              " for validation and ", test, " for testing, and none of them may be empty");
  const auto order = CounterRng(options.split_seed(), 0).choose(count, count);
  Listing listing;
  listing.splits.resize(count);
  for (int64_t i = 0; i < count; ++i) listing.splits[order[i]] = i < train ? 0 : i < train + validation ? 1 : 2;
  for (auto& [name, files] : classes) {
    listing.names.push_back(name);
    listing.files.push_back(std::move(files));
  }
  return listing;
}

Listing list_files(const ImageFolderOptions& options) {
  const fs::path root = options.data_root();
  TORCH_CHECK(is_folder(root), "load_image_folder: there is no folder ", root);
  std::vector<Classes> parts;
  if (is_file(root / "train.csv")) {
    for (const std::string split : kSplits) parts.push_back(read_csv(root, root / (split + ".csv")));
    return join(std::move(parts));
  }
  if (is_folder(root / "train")) {
    for (const auto* split : kSplits) parts.push_back(list_classes(root / split));
    return join(std::move(parts));
  }
  return split_at_random(list_classes(root), options);
}

std::optional<fs::path> cache_path(const ImageFolderOptions& options, const std::vector<fs::path>& files) {
  if (!options.cache()) return std::nullopt;
  const auto folder = options.cache_dir().empty() ? default_cache_dir() : fs::path(options.cache_dir());
  if (!folder) return std::nullopt;
  uint64_t key = kCacheVersion;
  for (const auto& file : files) {
    std::error_code error;
    std::ostringstream text;
    text << file.lexically_relative(options.data_root()).string() << '\n'
         << fs::file_size(file, error) << ' ' << fs::last_write_time(file, error).time_since_epoch().count();
    key = checksum(std::move(text).str(), key);
  }
  std::ostringstream name;
  name << "images-" << options.channels() << 'x' << options.size() << 'x' << options.size() << '-' << std::hex
       << std::setfill('0') << std::setw(16) << key << ".bin";
  return *folder / name.str();
}

// Calls `work` for 0 to count - 1 from several threads. If some of the calls throw, the first of them is the one whose
// exception goes on: all calls before it were made.
void for_each_index(int64_t count, int64_t threads, const std::function<void(int64_t)>& work) {
  std::atomic<int64_t> next = 0, failed = count;
  std::exception_ptr exception;
  std::mutex mutex;
  const auto run = [&] {
    for (int64_t i = next++; i < failed; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < failed) {
          failed = i;
          exception = std::current_exception();
        }
      }
    }
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < std::min(threads, count); ++t) others.emplace_back(run);
  run();
  for (auto& thread : others) thread.join();
  if (exception) std::rethrow_exception(exception);
}

std::string decode_all(const std::vector<fs::path>& files, const ImageFolderOptions& options) {
  const size_t bytes = options.channels() * options.size() * options.size();
  std::string pixels(files.size() * bytes, '\0');
  const int64_t processors = std::max(1u, std::thread::hardware_concurrency());
  for_each_index(static_cast<int64_t>(files.size()), options.threads() > 0 ? options.threads() : processors,
                 [&](int64_t i) {
                   const auto image = decode_image(read_file(files[i]), options.channels(), files[i].string());
                   const auto resized = resize_image(image, options.size());
                   std::memcpy(pixels.data() + i * bytes, resized.const_data_ptr<uint8_t>(), bytes);
                 });
  return pixels;
}

std::string read_pixels(const std::vector<fs::path>& files, const ImageFolderOptions& options) {
  const auto path = cache_path(options, files);
  const size_t bytes = files.size() * options.channels() * options.size() * options.size();
  if (path) {
    auto content = read_cache_file(*path);
    if (content && content->size() == bytes) return *std::move(content);
  }
  auto pixels = decode_all(files, options);
  if (path) write_cache_file(*path, pixels);
  return pixels;
}

}  // namespace

ImageFolderData load_image_folder(const ImageFolderOptions& options) {
  TORCH_CHECK(options.size() >= 1, "load_image_folder: expected a size of at least 1, got ", options.size());
  TORCH_CHECK(options.channels() == 1 || options.channels() == 3, "load_image_folder: expected 1 or 3 channels, got ",
              options.channels());
  TORCH_CHECK(options.threads() >= 0, "load_image_folder: expected a number of threads of at least 0, got ",
              options.threads());
  const auto listing = list_files(options);
  std::vector<fs::path> files;
  ImageFolderData data;
  ImageClasses* const splits[] = {&data.train, &data.validation, &data.test};
  for (size_t c = 0; c < listing.names.size(); ++c) {
    splits[listing.splits[c]]->classes.push_back(
        {listing.names[c], static_cast<int64_t>(files.size()), static_cast<int64_t>(listing.files[c].size())});
    files.insert(files.end(), listing.files[c].begin(), listing.files[c].end());
  }
  // The tensor is a view of the string, which may be a gigabyte.
  const auto pixels = std::make_shared<std::string>(read_pixels(files, options));
  const auto images = at::from_blob(
      pixels->data(), {static_cast<int64_t>(files.size()), options.channels(), options.size(), options.size()},
      [pixels](void*) {}, at::kByte);
  for (auto* split : splits) split->images = images;
  return data;
}

std::string describe(const ImageFolderData& data) {
  std::ostringstream text;
  const auto row = [&](const char* name, const ImageClasses& split) {
    int64_t images = 0;
    for (const auto& c : split.classes) images += c.count;
    text << name << split.classes.size() << " classes, " << images << " images";
    if (!split.classes.empty()) {
      const auto [least, most] = std::minmax_element(split.classes.begin(), split.classes.end(),
                                                     [](const auto& a, const auto& b) { return a.count < b.count; });
      text << ", " << least->count;
      if (least->count != most->count) text << " to " << most->count;
      text << " a class";
    }
    text << '\n';
  };
  row("training    ", data.train);
  row("validation  ", data.validation);
  row("test        ", data.test);
  const auto& images = data.train.images;
  text << "image size  " << images.size(1) << 'x' << images.size(2) << 'x' << images.size(3) << '\n';
  return text.str();
}

}  // namespace gimli::data
