/* @MODEL@ in C++, by TensorRT 10.3 or later. First `sh build_engine.sh`, which writes @STEM@.engine for this GPU; then:
  g++ -std=c++17 -O2 classifier.cpp -o classifier -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart
  ./classifier ../@STEM@.engine ../labels.txt ../golden/input0.bin */
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

constexpr int kBatch = @BATCH@, kChannels = @CHANNELS@, kHeight = @HEIGHT@, kWidth = @WIDTH@, kClasses = @CLASSES@;
constexpr int kPixels = kHeight * kWidth;
constexpr double kMean[] = {@MEAN@}, kStd[] = {@STD@};  // of @LETTERS@ in [0, 1]
constexpr double kWeights[] = {@WEIGHTS@};  // of R, G, B in each channel
constexpr size_t kInputs = size_t{kBatch} * kChannels * kPixels, kOutputs = size_t{kBatch} * kClasses;

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

void require(bool held, const std::string& what) {
  if (!held) throw std::runtime_error(what);
}

class Log : public nvinfer1::ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", text);
  }
};

class Classifier {
 public:
  explicit Classifier(const std::string& file) {
    std::ifstream opened(file, std::ios::binary);
    const std::vector<char> plan((std::istreambuf_iterator<char>(opened)), std::istreambuf_iterator<char>());
    runtime_.reset(nvinfer1::createInferRuntime(log_));
    require(runtime_ != nullptr, "TensorRT does not start");
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    require(engine_ != nullptr, file + " is no engine for this GPU and TensorRT: run build_engine.sh");
    context_.reset(engine_->createExecutionContext());
    require(context_ != nullptr, "no memory for the network");
    require(cudaMalloc(&input_, kInputs * sizeof(float)) == cudaSuccess, "no memory for the input");
    require(cudaMalloc(&output_, kOutputs * sizeof(float)) == cudaSuccess, "no memory for the output");
    require(cudaStreamCreate(&stream_) == cudaSuccess, "no stream");
    require(context_->setInputShape("@INPUT@", nvinfer1::Dims4{kBatch, kChannels, kHeight, kWidth}) &&
                context_->setTensorAddress("@INPUT@", input_) && context_->setTensorAddress("@OUTPUT@", output_),
            "the engine has other inputs or outputs");
  }

  ~Classifier() {
    cudaFree(input_);
    cudaFree(output_);
    cudaStreamDestroy(stream_);
  }

  // kBatch * kChannels * kPixels values in, kBatch * kClasses logits out.
  std::vector<float> operator()(const std::vector<float>& input) {
    require(input.size() == kInputs, "the input has the wrong size");
    std::vector<float> logits(kOutputs);
    cudaMemcpyAsync(input_, input.data(), kInputs * sizeof(float), cudaMemcpyHostToDevice, stream_);
    require(context_->enqueueV3(stream_), "the network failed");
    cudaMemcpyAsync(logits.data(), output_, kOutputs * sizeof(float), cudaMemcpyDeviceToHost, stream_);
    require(cudaStreamSynchronize(stream_) == cudaSuccess, "the network failed");
    return logits;
  }

 private:
  Log log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  void* input_ = nullptr;
  void* output_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

int main(int argc, char** argv) {
  if (argc < 4) return std::fprintf(stderr, "usage: classifier @STEM@.engine labels.txt INPUT.bin...\n"), 2;
  Classifier network(argv[1]);
  std::vector<std::string> labels;
  std::ifstream lines(argv[2]);
  for (std::string line; std::getline(lines, line);) labels.push_back(line);
  for (int i = 3; i < argc; ++i) {
    std::vector<float> input(kInputs);
    std::ifstream file(argv[i], std::ios::binary);
    if (!file.read(reinterpret_cast<char*>(input.data()), kInputs * sizeof(float)))
      return std::fprintf(stderr, "%s is not %zu float32 values\n", argv[i], kInputs), 1;
    const std::vector<float> logits = network(input);
    const auto best = std::max_element(logits.begin(), logits.begin() + kClasses) - logits.begin();
    std::printf("%s: %s\n", argv[i], labels.at(best).c_str());
    for (const float logit : logits) std::printf("%.9g\n", logit);
  }
}
