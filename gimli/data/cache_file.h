#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace gimli::data {

/// Where what was read once is kept to be read faster: `$GIMLI_CACHE`, else `$XDG_CACHE_HOME/gimli`, else
/// `$HOME/.cache/gimli`; nothing if none of them is set.
std::optional<std::filesystem::path> default_cache_dir();

/// 64 bits that tell apart files and find damage, at several GB/s. Not for adversaries.
uint64_t checksum(std::string_view bytes, uint64_t seed = 0);

/// What `write_cache_file` put there, or nothing if the file is absent, unreadable or damaged. Never throws for the
/// state of the file system.
std::optional<std::string> read_cache_file(const std::filesystem::path& path);

/// Writes `content` and its checksum beside `path` and renames it there, so that a reader sees all of it or nothing,
/// and writers do not disturb each other; makes the folder if need be. False if that was not possible: a cache that
/// cannot be written is slow, not wrong.
bool write_cache_file(const std::filesystem::path& path, std::string_view content);

}  // namespace gimli::data
