#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace gimli::data {

/// A file inside an archive.
struct ArchiveEntry {
  std::string name;
  std::string bytes;
};

/// The bytes of a file. Throws, naming it, if it cannot be read.
std::string read_file(const std::filesystem::path& path);

/// The regular files of a zip archive held in memory, in the archive's order, unpacked and with their CRCs checked.
/// `path` is what to call the archive in messages. Throws, naming it and the entry, if it is damaged or cut short.
std::vector<ArchiveEntry> read_zip(std::string_view archive, const std::filesystem::path& path);

/// What a gzip file held in memory unpacks to, of one or more members, with their CRCs checked. `path` is what to call
/// the file in messages. Throws, naming it, if it is damaged or cut short.
std::string read_gzip(std::string_view file, const std::filesystem::path& path);

}  // namespace gimli::data
