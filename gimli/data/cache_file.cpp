#include "gimli/data/cache_file.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <system_error>

namespace gimli::data {
namespace {

constexpr uint64_t kMagic = 0x67696d6c69303153;  // the format's version, and the byte order of the machine that wrote

struct Header {
  uint64_t magic;
  uint64_t size;
  uint64_t checksum;
};

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? value : nullptr;
}

}  // namespace

std::optional<std::filesystem::path> default_cache_dir() {
  if (const char* folder = variable("GIMLI_CACHE")) return folder;
  if (const char* folder = variable("XDG_CACHE_HOME")) return std::filesystem::path(folder) / "gimli";
  if (const char* folder = variable("HOME")) return std::filesystem::path(folder) / ".cache" / "gimli";
  return std::nullopt;
}

uint64_t checksum(std::string_view bytes, uint64_t seed) {
  uint64_t hash = seed ^ (bytes.size() * 0x9e3779b97f4a7c15);
  while (!bytes.empty()) {
    uint64_t word = 0;
    const size_t count = std::min(bytes.size(), sizeof word);
    std::memcpy(&word, bytes.data(), count);
    hash = std::rotl((hash ^ word) * 0xff51afd7ed558ccd, 29);
    bytes.remove_prefix(count);
  }
  hash = (hash ^ (hash >> 32)) * 0xc4ceb9fe1a85ec53;
  return hash ^ (hash >> 29);
}

std::optional<std::string> read_cache_file(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  Header header{};
  if (error || size < sizeof header || !file.read(reinterpret_cast<char*>(&header), sizeof header)) return std::nullopt;
  if (header.magic != kMagic || header.size != size - sizeof header) return std::nullopt;
  std::string content(header.size, '\0');
  if (!file.read(content.data(), static_cast<std::streamsize>(content.size()))) return std::nullopt;
  if (checksum(content) != header.checksum) return std::nullopt;
  return content;
}

bool write_cache_file(const std::filesystem::path& path, std::string_view content) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) return false;
  auto temporary = path;
  temporary += std::to_string(std::random_device{}());
  temporary += ".tmp";
  const Header header{kMagic, content.size(), checksum(content)};
  std::ofstream file(temporary, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&header), sizeof header);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (file) std::filesystem::rename(temporary, path, error);
  if (file && !error) return true;
  std::filesystem::remove(temporary, error);
  return false;
}

}  // namespace gimli::data
