#include "app/metrics.h"

#include <c10/util/Exception.h>

#include <cerrno>
#include <cstring>

#include "app/file.h"

namespace gimli::app {
namespace {

using nlohmann::json;

/// The length of the lines up to `iteration`.
size_t kept_length(const std::string& content, int64_t iteration) {
  size_t kept = 0;
  for (auto end = content.find('\n'); end != std::string::npos; end = content.find('\n', kept)) {
    const auto line = json::parse(content.begin() + kept, content.begin() + end, nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("iteration") || line["iteration"] > iteration) break;
    kept = end + 1;
  }
  return kept;
}

}  // namespace

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t iteration)
    : path_(path), file_(nullptr, &std::fclose) {
  if (std::filesystem::exists(path)) {
    std::filesystem::resize_file(path, kept_length(read_file(path), iteration));
  }
  file_.reset(std::fopen(path.c_str(), "ae"));
  TORCH_CHECK(file_, "cannot write ", path.string(), ": ", std::strerror(errno));
}

void MetricsFile::append(const nlohmann::ordered_json& line) {
  const auto text = line.dump() + '\n';
  std::fwrite(text.data(), 1, text.size(), file_.get());
}

void MetricsFile::flush() {
  TORCH_CHECK(std::fflush(file_.get()) == 0 && !std::ferror(file_.get()), "cannot write ", path_.string(), ": ",
              std::strerror(errno));
}

std::vector<json> read_metrics(const std::filesystem::path& path) {
  const auto content = read_file(path);
  std::vector<json> lines;
  size_t begin = 0;
  for (auto end = content.find('\n'); end != std::string::npos; end = content.find('\n', begin)) {
    auto line = json::parse(content.begin() + begin, content.begin() + end, nullptr, /*allow_exceptions=*/false);
    TORCH_CHECK(line.contains("iteration") && line["iteration"].is_number(), path.string(), ", line ", lines.size() + 1,
                ", is not a line of metrics: it must be an object with the number iteration");
    lines.push_back(std::move(line));
    begin = end + 1;
  }
  return lines;
}

}  // namespace gimli::app
