#pragma once

#include <ATen/core/Tensor.h>
#include <torch/arg.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gimli/data/episode_sampler.h"
#include "gimli/data/image_classes.h"
#include "gimli/data/image_tasks.h"
#include "gimli/data/task.h"

namespace gimli::data {

struct OmniglotOptions {
  explicit OmniglotOptions(std::string data_root) : data_root_(std::move(data_root)) {}
  /// The folder that holds `images_background.zip` and `images_evaluation.zip`, itself or in its folder `omniglot`.
  TORCH_ARG(std::string, data_root);
  /// Where the decoded images are kept for the next run; empty for `default_cache_dir()` (cache_file.h).
  TORCH_ARG(std::string, cache_dir) = "";
  /// False: neither read nor write a cache.
  TORCH_ARG(bool, cache) = true;
  /// How many characters are for meta-training; the others are for testing.
  TORCH_ARG(int64_t, train_classes) = 1200;
  /// How many of those for meta-training are held back to choose a model by; 50 leaves 1,150, as Antoniou et al. 2019
  /// ("How to train your MAML") have it. The test characters stay the same.
  TORCH_ARG(int64_t, validation_classes) = 0;
  /// Which ones: the seed of the shuffle that splits them. Keep it to compare with other runs.
  TORCH_ARG(uint64_t, split_seed) = 1623;
};

struct OmniglotCharacter {
  /// "background" or "evaluation", the archive it came from.
  std::string archive;
  std::string alphabet;
  std::string name;

  bool operator==(const OmniglotCharacter&) const = default;
};

/// The data set, read once and shared by whoever uses it.
struct OmniglotData {
  /// uint8 [characters, drawings, 28, 28]: the part of a pixel covered by ink, paper 0 and ink 255.
  at::Tensor images;
  /// Row c of `images`; ordered by archive, alphabet and character, the drawings by file name.
  std::vector<OmniglotCharacter> characters;
  /// Rows of `images`, ascending; together they are all rows.
  std::vector<int64_t> train_classes, validation_classes, test_classes;
};

/// Reads Omniglot (Lake et al. 2015, "Human-level concept learning through probabilistic program induction"), all of
/// its 1,623 characters, and splits them at random, 1,200 for training and 423 for testing, as Santoro et al. 2016,
/// Vinyals et al. 2016 and Finn et al. 2017 do; the archives' own halves are not the split. The papers' splits were
/// not published with them, so numbers compare across splits of this kind only up to that choice.
///
/// The 105x105 drawings become 28x28 by area averaging: a pixel is the mean of the 3.75 x 3.75 pixels under it, partly
/// covered ones in proportion. It is done in whole numbers with one rounding at the end, so the result is the same on
/// every machine. It keeps the amount of ink.
///
/// Smaller archives of the same layout are read too, of any number of characters with one number of drawings each.
/// The first read takes seconds; what it made is kept in the cache folder under a name made from the contents of both
/// archives (their names, places and times do not matter, a changed archive is another name) and the format's version.
/// A cache that is damaged or cannot be written is ignored.
///
/// Throws, naming the file, if an archive is missing or damaged, an image is damaged or not 105x105, the characters
/// have different numbers of drawings, or none would be left for training or for testing.
OmniglotData load_omniglot(const OmniglotOptions& options);

struct OmniglotSummary {
  int64_t alphabets;
  int64_t characters;
  int64_t drawings;
  int64_t image_size;
  /// The mean over all pixels, paper 0 and ink 1.
  double mean_ink;
  int64_t train_characters;
  int64_t validation_characters;
  int64_t test_characters;
};

OmniglotSummary summarize(const OmniglotData& data);

/// The summary in a few lines of text.
std::string describe(const OmniglotSummary& summary);

enum class OmniglotSplit { kTrain, kValidation, kTest };

/// The characters of a split as classes of `data`'s images, uint8 [characters * drawings, 1, 28, 28], in the order of
/// `train_classes`, `validation_classes` or `test_classes`. A class's name is the alphabet's and the character's with a
/// slash between them.
ImageClasses image_classes(const OmniglotData& data, OmniglotSplit split);

/// N-way, k-shot classification of Omniglot's characters: ImageTasks of [ways * shots, 1, 28, 28] and of [0, 1].
class OmniglotTasks final : public TaskSource {
 public:
  /// Left open, rotations (see ImageTasksOptions) are used in training and not in validation and testing, where they
  /// would test other classes than the held-out characters; Finn et al.'s program turns test characters too: say `true`
  /// to compare with it. Throws as EpisodeSampler does.
  OmniglotTasks(const OmniglotData& data, OmniglotSplit split, EpisodeSamplerOptions episodes,
                std::optional<bool> rotations = std::nullopt);

  Task task(int64_t index) const override { return tasks_.task(index); }

  int64_t class_count() const { return tasks_.class_count(); }

  /// See ImageTasks::episode.
  Episode episode(int64_t index) const { return tasks_.episode(index); }

 private:
  ImageTasks tasks_;
};

}  // namespace gimli::data
