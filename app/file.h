#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace gimli::app {

/// The whole file. Throws, naming it, if it cannot be read.
std::string read_file(const std::filesystem::path& path);

/// Replaces the file as a whole: `content` goes to a second file in the same folder, to the disk, and is renamed. A
/// reader, or the next run after a crash, sees the old content or the new.
void write_file(const std::filesystem::path& path, std::string_view content);

/// Keeps other processes of this program out of a folder while it lives; the folder is made if need be.
class FolderLock final {
 public:
  /// Throws if another process has it.
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_;
};

}  // namespace gimli::app
