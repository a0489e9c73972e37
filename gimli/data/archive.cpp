#include "gimli/data/archive.h"

#include <archive.h>
#include <archive_entry.h>
#include <c10/util/Exception.h>
#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <memory>

namespace gimli::data {
namespace {

std::string reason(archive* reader) {
  const char* message = archive_error_string(reader);
  std::string text = message ? message : "unknown error";
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::string name_of(archive_entry* entry) {
  const char* name = archive_entry_pathname_utf8(entry);
  if (!name) name = archive_entry_pathname(entry);
  return name ? name : "";
}

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  TORCH_CHECK(file, "read_file: cannot open ", path);
  const std::streamoff size = file.tellg();
  TORCH_CHECK(size >= 0, "read_file: expected a file, got ", path);
  std::string bytes(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(bytes.data(), size);
  TORCH_CHECK(file.gcount() == size, "read_file: got ", file.gcount(), " of the ", size, " bytes of ", path);
  return bytes;
}

std::vector<ArchiveEntry> read_zip(std::string_view bytes, const std::filesystem::path& path) {
  const std::unique_ptr<archive, decltype(&archive_read_free)> reader(archive_read_new(), &archive_read_free);
  TORCH_CHECK(reader, "read_zip: out of memory at ", path);
  archive_read_support_format_zip(reader.get());
  TORCH_CHECK(archive_read_open_memory(reader.get(), bytes.data(), bytes.size()) == ARCHIVE_OK,
              "read_zip: cannot read ", path, " as a zip archive: ", reason(reader.get()));
  std::vector<ArchiveEntry> entries;
  std::string last = "(none)";
  for (;;) {
    archive_entry* header = nullptr;
    const int status = archive_read_next_header(reader.get(), &header);
    if (status == ARCHIVE_EOF) break;
    TORCH_CHECK(status == ARCHIVE_OK || status == ARCHIVE_WARN, "read_zip: ", path, " is damaged after entry ", last,
                ": ", reason(reader.get()));
    last = name_of(header);
    if (archive_entry_filetype(header) != AE_IFREG) continue;
    ArchiveEntry entry{last, {}};
    char block[16384];
    for (;;) {
      const auto count = archive_read_data(reader.get(), block, sizeof block);
      TORCH_CHECK(count >= 0, "read_zip: ", path, " is damaged at entry ", last, ": ", reason(reader.get()));
      if (count == 0) break;
      entry.bytes.append(block, static_cast<size_t>(count));
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

// With zlib: libarchive's gzip reader does not look at the CRC.
std::string read_gzip(std::string_view file, const std::filesystem::path& path) {
  constexpr int kGzipOnly = 16 + MAX_WBITS;
  z_stream stream{};
  TORCH_CHECK(inflateInit2(&stream, kGzipOnly) == Z_OK, "read_gzip: out of memory at ", path);
  const std::unique_ptr<z_stream, decltype(&inflateEnd)> release(&stream, &inflateEnd);
  std::string bytes;
  std::vector<unsigned char> block(1 << 18);
  int status = Z_BUF_ERROR;
  do {
    const auto size = std::min<size_t>(file.size(), std::numeric_limits<uInt>::max());
    stream.next_in = reinterpret_cast<unsigned char*>(const_cast<char*>(file.data()));
    stream.avail_in = static_cast<uInt>(size);
    stream.next_out = block.data();
    stream.avail_out = static_cast<uInt>(block.size());
    status = inflate(&stream, Z_NO_FLUSH);
    TORCH_CHECK(status == Z_OK || status == Z_STREAM_END, "read_gzip: ", path, " is no gzip file, damaged or cut short",
                stream.msg ? ": " : "", stream.msg ? stream.msg : "");
    bytes.append(reinterpret_cast<const char*>(block.data()), block.size() - stream.avail_out);
    file.remove_prefix(size - stream.avail_in);
    if (status == Z_STREAM_END && !file.empty()) inflateReset(&stream);
  } while (status != Z_STREAM_END || !file.empty());
  return bytes;
}

}  // namespace gimli::data
