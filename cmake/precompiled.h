// Parsed once per build and shared by every target: libtorch's umbrella costs 13 s and 1 GB a file.
#include <torch/torch.h>
