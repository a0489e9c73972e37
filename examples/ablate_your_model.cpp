// A network of your own in the ablation of MAML++: write the network, give it a name.
//
//     ablate_your_model ablate maml++ --models mine,vgg --inner-optimizers sgd,adam --data-root DIR
//
// It is the command gimli with one network more: train maml++ --model mine works too, and so does everything else.
#include <torch/torch.h>

#include "app/command.h"
#include "app/network.h"

/// Two wide convolutions, averaged over the image.
struct MyNetwork : torch::nn::Module {
  MyNetwork(int64_t channels, int64_t classes)
      : first(register_module("first", torch::nn::Conv2d(torch::nn::Conv2dOptions(channels, 32, 5).stride(2)))),
        second(register_module("second", torch::nn::Conv2d(torch::nn::Conv2dOptions(32, 64, 5).stride(2)))),
        classifier(register_module("classifier", torch::nn::Linear(64, classes))) {}

  at::Tensor forward(const at::Tensor& images) {
    return classifier(torch::relu(second(torch::relu(first(images)))).mean({2, 3}));
  }

  torch::nn::Conv2d first, second;
  torch::nn::Linear classifier;
};

int main(int argc, char** argv) {
  gimli::app::register_network("mine", [](const gimli::app::NetworkOptions& options) -> gimli::app::Network {
    auto network = std::make_shared<MyNetwork>(options.channels, options.classes);
    return {network, [network](const at::Tensor& images, int64_t /*step*/) { return network->forward(images); }};
  });
  return gimli::app::run_command(argc, argv);
}
