#pragma once

#include <archive.h>
#include <archive_entry.h>

#include "data_fixture.h"

namespace gimli::app {

/// Omniglot's archives with two drawings each of 1,208 characters, 1,200 of which are for training: squares on a grid
/// that tell the character, moved a little in the second drawing.
inline void write_omniglot(const fs::path& root) {
  constexpr int64_t kCharacters = 1208, kSize = 105;
  const auto drawing = [](int64_t character, int64_t shift) {
    data::Rows rows(kSize, std::vector<uint8_t>((kSize + 7) / 8, 0xff));  // paper is 1
    for (int64_t y = 0; y < kSize - 5; ++y) {
      for (int64_t x = 0; x < kSize - 5; ++x) {
        if (((character * 2654435761u) >> (4 * (y / 25) + x / 25)) % 2 == 0) continue;
        rows[y + shift][(x + shift) / 8] &= ~(0x80 >> ((x + shift) % 8));
      }
    }
    return data::write_png(rows, kSize, 1, PNG_COLOR_TYPE_GRAY);
  };
  for (const std::string name : {"images_background", "images_evaluation"}) {
    archive* writer = archive_write_new();
    archive_write_set_format_zip(writer);
    ASSERT_EQ(archive_write_open_filename(writer, (root / (name + ".zip")).c_str()), ARCHIVE_OK);
    for (int64_t c = name == "images_background" ? 0 : 1; c < kCharacters; c += 2) {
      for (int64_t d = 0; d < 2; ++d) {
        const auto bytes = drawing(c, 3 * d);
        const auto path = name + "/Runes/character" + std::to_string(c) + "/0_" + std::to_string(d) + ".png";
        archive_entry* entry = archive_entry_new();
        archive_entry_set_pathname(entry, path.c_str());
        archive_entry_set_filetype(entry, AE_IFREG);
        archive_entry_set_perm(entry, 0644);
        archive_entry_set_size(entry, static_cast<int64_t>(bytes.size()));
        ASSERT_EQ(archive_write_header(writer, entry), ARCHIVE_OK);
        archive_write_data(writer, bytes.data(), bytes.size());
        archive_entry_free(entry);
      }
    }
    archive_write_close(writer);
    archive_write_free(writer);
  }
}

/// Keeps decoded data sets in a folder of the test's while it lives, and not in the user's.
class CacheFolder final {
 public:
  explicit CacheFolder(const fs::path& folder) { setenv("GIMLI_CACHE", folder.c_str(), 1); }
  ~CacheFolder() { unsetenv("GIMLI_CACHE"); }
};

}  // namespace gimli::app
