#include "app/labelled_images.h"

#include <ATen/ATen.h>

#include <cmath>

#include "gimli/data/counter_rng.h"
#include "gimli/data/image_batch.h"

namespace gimli::app {
namespace {

using Rows = std::vector<int64_t>;

LabelledImages rows_of(const at::Tensor& images, const at::Tensor& labels, const Rows& rows) {
  const auto index = at::tensor(rows, at::kLong);
  return {data::normalize(images.index_select(0, index), {{0}, {1}}).flatten(1), labels.index_select(0, index)};
}

}  // namespace

LabelledImages LabelledImages::at(const at::Tensor& rows) const {
  return {pixels.index_select(0, rows), labels.index_select(0, rows)};
}

LabelledImages LabelledImages::and_those_of(const LabelledImages& others) const {
  return {at::cat({pixels, others.pixels}), at::cat({labels, others.labels})};
}

ImageParts draw_parts(const data::MnistData& data, const PartSizes& sizes, uint64_t seed) {
  const auto images = data.train_labels.size(0), test_images = data.test_labels.size(0);
  TORCH_CHECK(sizes.training + sizes.validation <= images, "training_images and validation_images: expected at most ",
              images, " together, as there are, got ", sizes.training, " and ", sizes.validation);
  TORCH_CHECK(sizes.test <= test_images, "test_images: expected at most ", test_images, ", as there are, got ",
              sizes.test);
  const auto drawn = data::CounterRng(seed, 0).choose(images, sizes.training + sizes.validation);
  const auto middle = drawn.begin() + sizes.training;
  const auto tested = data::CounterRng(seed, 1).choose(test_images, sizes.test == 0 ? test_images : sizes.test);
  return {rows_of(data.train_images, data.train_labels, Rows(drawn.begin(), middle)),
          rows_of(data.train_images, data.train_labels, Rows(middle, drawn.end())),
          rows_of(data.test_images, data.test_labels, tested)};
}

CorruptedLabels corrupt(const at::Tensor& labels, double share, int64_t classes, uint64_t seed) {
  const auto size = labels.size(0);
  data::CounterRng random(seed, 0);
  CorruptedLabels result{labels.clone(), at::zeros({size}, at::kBool)};
  for (const auto row : random.choose(size, std::llround(share * static_cast<double>(size)))) {
    const auto label = labels[row].item<int64_t>();
    result.labels[row] = (label + 1 + random.below(classes - 1)) % classes;
    result.is_corrupted[row] = true;
  }
  return result;
}

LabelledImages draw_each_class(const LabelledImages& images, int64_t per_class, int64_t classes, uint64_t seed) {
  std::vector<at::Tensor> drawn;
  for (int64_t c = 0; c < classes; ++c) {
    const auto rows = images.labels.eq(c).nonzero().squeeze(1);
    TORCH_CHECK(per_class <= rows.size(0), "images_per_class: expected at most ", rows.size(0),
                ", the training images of class ", c, ", got ", per_class);
    const auto chosen = data::CounterRng(seed, c).choose(rows.size(0), per_class);
    drawn.push_back(rows.index_select(0, at::tensor(chosen, rows.options())));
  }
  return images.at(at::cat(drawn));
}

}  // namespace gimli::app
