#pragma once

#include <archive.h>
#include <archive_entry.h>
#include <torch/torch.h>

#include "data_fixture.h"
#include "gimli/data/archive.h"

namespace gimli::data {

inline void write_zip(const fs::path& path, const std::vector<ArchiveEntry>& entries) {
  fs::create_directories(path.parent_path());
  archive* writer = archive_write_new();
  archive_write_set_format_zip(writer);
  ASSERT_EQ(archive_write_open_filename(writer, path.c_str()), ARCHIVE_OK);
  for (const auto& [name, bytes] : entries) {
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, name.c_str());
    archive_entry_set_filetype(entry, name.ends_with('/') ? AE_IFDIR : AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_size(entry, static_cast<int64_t>(bytes.size()));
    ASSERT_EQ(archive_write_header(writer, entry), ARCHIVE_OK);
    archive_write_data(writer, bytes.data(), bytes.size());
    archive_entry_free(entry);
  }
  archive_write_close(writer);
  archive_write_free(writer);
}

/// `ink` uint8 [height, width] of 0 and 1, as a 1-bit PNG where paper is 1.
inline std::string write_drawing(const at::Tensor& ink) {
  const auto pixel = ink.accessor<uint8_t, 2>();
  Rows rows;
  for (int64_t y = 0; y < ink.size(0); ++y) {
    std::vector<uint8_t> row((ink.size(1) + 7) / 8, 0);
    for (int64_t x = 0; x < ink.size(1); ++x) {
      if (!pixel[y][x]) row[x / 8] |= 0x80 >> (x % 8);
    }
    rows.push_back(row);
  }
  return write_png(rows, ink.size(1), 1, PNG_COLOR_TYPE_GRAY);
}

/// Archives of the official layout with as many characters as there are, of two drawings each: a square whose place
/// tells the character.
inline void write_whole_omniglot(const fs::path& root) {
  constexpr int64_t kSize = 105;
  const auto entries = [&](const std::string& archive, int64_t characters) {
    std::vector<ArchiveEntry> list;
    for (int64_t c = 0; c < characters; ++c) {
      for (int64_t drawing = 0; drawing < 2; ++drawing) {
        auto ink = torch::zeros({kSize, kSize}, torch::kByte);
        ink.narrow(0, c / 40, 20).narrow(1, 2 * (c % 40), 20 + drawing).fill_(1);
        list.push_back({archive + "/Squares/character" + std::to_string(c) + "/" + std::to_string(c) + "_0" +
                            std::to_string(drawing + 1) + ".png",
                        write_drawing(ink)});
      }
    }
    return list;
  };
  write_zip(root / "images_background.zip", entries("images_background", 964));
  write_zip(root / "images_evaluation.zip", entries("images_evaluation", 659));
}

}  // namespace gimli::data
