#include "app/file.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

namespace gimli::app {
namespace {

/// A file descriptor, closed at the end.
struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

std::string reason() { return std::strerror(errno); }

void sync_folder(const std::filesystem::path& folder) {
  const Descriptor opened{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (opened.number >= 0) ::fsync(opened.number);
}

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  TORCH_CHECK(!std::filesystem::is_directory(path), path.string(), " is a folder, not a file");
  std::ifstream stream(path, std::ios::binary);
  TORCH_CHECK(stream, "cannot read ", path.string(), ": ", reason());
  std::string content{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  TORCH_CHECK(!stream.bad(), "cannot read ", path.string(), ": ", reason());
  return content;
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  auto temporary = path;
  temporary += ".tmp";
  {
    const Descriptor file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)};
    TORCH_CHECK(file.number >= 0, "cannot write ", path.string(), ": ", reason());
    for (auto rest = content; !rest.empty();) {
      const auto written = ::write(file.number, rest.data(), rest.size());
      if (written < 0 && errno == EINTR) continue;
      TORCH_CHECK(written >= 0, "cannot write ", path.string(), ": ", reason());
      rest.remove_prefix(static_cast<size_t>(written));
    }
    TORCH_CHECK(::fsync(file.number) == 0, "cannot write ", path.string(), ": ", reason());
  }
  TORCH_CHECK(std::rename(temporary.c_str(), path.c_str()) == 0, "cannot write ", path.string(), ": ", reason());
  sync_folder(path.has_parent_path() ? path.parent_path() : ".");
}

FolderLock::FolderLock(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  TORCH_CHECK(std::filesystem::is_directory(folder), "cannot make the folder ", folder.string(), ": ",
              error ? error.message() : "there is a file of that name");
  descriptor_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  TORCH_CHECK(descriptor_ >= 0, "cannot open the folder ", folder.string(), ": ", reason());
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(descriptor_);
    TORCH_CHECK(false, "another gimli is at work in ", folder.string());
  }
}

FolderLock::~FolderLock() { ::close(descriptor_); }

}  // namespace gimli::app
