/* @MODEL@ in C++, by ExecuTorch: classifier.cpp prints the class of raw inputs such as golden/input0.bin.

On Linux, by the libraries in the Python package (pip install executorch torch), from this folder:
  R=$(python3 -c 'import importlib.util as u; print(u.find_spec("executorch").submodule_search_locations[0])')
  g++ -std=c++17 -O2 -DC10_USING_CUSTOM_GENERATED_MACROS classifier.cpp -o classifier -I"$R/include" \
    -I"$R/include/executorch/runtime/core/portable_type/c10" -L"$R/lib" -Wl,-rpath,"$R/lib" -Wl,--no-as-needed \
    -lexecutorch -lexecutorch_backend_xnnpack -lexecutorch_threadpool -lexecutorch_kernels_optimized
  ./classifier ../@FILE@ ../labels.txt ../golden/input0.bin
In an app for Android, by the NDK, link ExecuTorch's own CMake targets instead. */
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

constexpr int kBatch = @BATCH@, kChannels = @CHANNELS@, kHeight = @HEIGHT@, kWidth = @WIDTH@, kClasses = @CLASSES@;
constexpr int kPixels = kHeight * kWidth;
constexpr double kMean[] = {@MEAN@}, kStd[] = {@STD@};  // of @LETTERS@ in [0, 1]
constexpr double kWeights[] = {@WEIGHTS@};  // of R, G, B in each channel

// One image, kHeight x kWidth pixels of R, G, B, 8 bits each, as the network's input: planes of (x / 255 - mean) / std.
std::vector<float> normalized(const uint8_t* rgb) {
  std::vector<float> planes(kChannels * kPixels);
  for (int c = 0; c < kChannels; ++c)
    for (int i = 0; i < kPixels; ++i) {
      double level = 0;
      for (int k = 0; k < 3; ++k) level += kWeights[3 * c + k] * rgb[3 * i + k];
      planes[c * kPixels + i] = static_cast<float>((level / 255.0 - kMean[c]) / kStd[c]);
    }
  return planes;
}

class Classifier {
 public:
  explicit Classifier(const std::string& pte) : module_(pte) {
    if (module_.load_forward() != executorch::runtime::Error::Ok) throw std::runtime_error("cannot load " + pte);
  }

  // kBatch * kChannels * kPixels values in, kBatch * kClasses logits out.
  std::vector<float> operator()(std::vector<float> input) {
    if (input.size() != size_t{kBatch} * kChannels * kPixels) throw std::runtime_error("the input has the wrong size");
    auto image = executorch::extension::from_blob(input.data(), {kBatch, kChannels, kHeight, kWidth});
    auto outputs = module_.forward(image);
    if (!outputs.ok()) throw std::runtime_error("the network failed");
    const auto logits = outputs->at(0).toTensor();
    return {logits.const_data_ptr<float>(), logits.const_data_ptr<float>() + logits.numel()};
  }

 private:
  executorch::extension::Module module_;
};

int main(int argc, char** argv) {
  if (argc < 4) return std::fprintf(stderr, "usage: classifier @FILE@ labels.txt INPUT.bin...\n"), 2;
  Classifier network(argv[1]);
  std::vector<std::string> labels;
  std::ifstream lines(argv[2]);
  for (std::string line; std::getline(lines, line);) labels.push_back(line);
  for (int i = 3; i < argc; ++i) {
    std::vector<float> input(size_t{kBatch} * kChannels * kPixels);
    std::ifstream file(argv[i], std::ios::binary);
    if (!file.read(reinterpret_cast<char*>(input.data()), input.size() * sizeof(float)))
      return std::fprintf(stderr, "%s is not %zu float32 values\n", argv[i], input.size()), 1;
    const std::vector<float> logits = network(std::move(input));
    const auto best = std::max_element(logits.begin(), logits.begin() + kClasses) - logits.begin();
    std::printf("%s: %s\n", argv[i], labels.at(best).c_str());
    for (const float logit : logits) std::printf("%.9g\n", logit);
  }
}
