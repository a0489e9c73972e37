#include "app/data_check.h"

#include <fmt/format.h>

#include <chrono>

#include "app/config.h"
#include "app/dataset.h"
#include "gimli/data/cifar10.h"
#include "gimli/data/idx.h"
#include "gimli/data/image_folder.h"
#include "gimli/data/omniglot.h"

namespace gimli::app {

const std::vector<CheckedDataset>& checked_datasets() {
  using namespace gimli::data;
  static const std::vector<CheckedDataset> rows{
      {"omniglot",
       [](const std::string& root) { return describe(summarize(load_omniglot(OmniglotOptions(root).cache(false)))); }},
      {"mini-imagenet",
       [](const std::string& root) {
         return describe(load_image_folder(ImageFolderOptions(folder_in(root, "mini-imagenet")).cache(false)));
       }},
      {"image-folder",
       [](const std::string& root) { return describe(load_image_folder(ImageFolderOptions(root).cache(false))); }},
      {"cifar-10", [](const std::string& root) { return describe(load_cifar10(root)); }},
      {"fashion-mnist", [](const std::string& root) { return describe(load_fashion_mnist(root)); }},
  };
  return rows;
}

std::string check_dataset(const std::string& name, const std::string& root) {
  std::vector<std::string> names;
  for (const auto& row : checked_datasets()) {
    names.push_back(row.name);
    if (row.name != name) continue;
    const auto began = std::chrono::steady_clock::now();
    auto text = row.describe(root);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (!text.ends_with('\n')) text += '\n';
    return fmt::format("{}read in {:.1f} s\n", text, seconds);
  }
  TORCH_CHECK(false, "data check knows no data set '", name, "'", suggestion(name, names));
}

}  // namespace gimli::app
