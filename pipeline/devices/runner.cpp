// Runs .pte files on a device whose Python has no ExecuTorch: a program beside `python -m pipeline.backends.worker.server`, which
// answers the requests that a benchmark makes, one line of JSON each over stdin and stdout. docs/devices.md tells how
// it is built, on the device, against the headers and libraries of ExecuTorch's own wheel.
//
//   runner --version
//   runner THREADS FOLDER      FOLDER/images.npy is the image: float32 (N, 3, H, W)

#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <unistd.h>

#ifndef EXECUTORCH_VERSION
#define EXECUTORCH_VERSION "unknown"
#endif

namespace executorch::extension::threadpool {  // the wheel has the library, and not this header
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

using executorch::etdump::ETDumpGen;
using executorch::extension::Module;

static FILE* replies;

static double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char one : text) {
    if (one == '"' || one == '\\') out += '\\';
    out += static_cast<unsigned char>(one) < ' ' ? ' ' : one;
  }
  return out + '"';
}

static void say(const std::string& members) {
  fprintf(replies, "{%s}\n", members.c_str());
  fflush(replies);
}

// The value of a key whose value is text or a number; requests hold no key twice.
static std::string value(const std::string& request, const std::string& key) {
  auto at = request.find("\"" + key + "\":");
  if (at == std::string::npos) return "";
  at = request.find_first_not_of(' ', at + key.size() + 3);
  if (request[at] != '"') return request.substr(at, request.find_first_of(",}", at) - at);
  std::string out;
  for (++at; at < request.size() && request[at] != '"'; ++at) out += request[at] == '\\' ? request[++at] : request[at];
  return out;
}

struct Image {
  std::vector<int> shape;
  std::vector<float> values;
};

static Image read_image(const std::string& place) {  // numpy.lib.format, version 1.0
  std::ifstream file(place, std::ios::binary);
  unsigned char head[10];
  if (!file.read(reinterpret_cast<char*>(head), 10) || memcmp(head, "\x93NUMPY\x01", 7) != 0)
    throw std::runtime_error(place + " is not an array of numpy's");
  std::string about(head[8] + 256 * head[9], ' ');
  file.read(&about[0], about.size());
  if (about.find("'<f4'") == std::string::npos || about.find("'fortran_order': False") == std::string::npos)
    throw std::runtime_error(place + " is not float32 in C order");
  Image image;
  std::istringstream sizes(about.substr(about.find('(') + 1));
  size_t count = 1;
  for (int size; sizes >> size; sizes.ignore(2, ' ')) image.shape.push_back(size), count *= size;
  image.values.resize(count);
  if (!file.read(reinterpret_cast<char*>(image.values.data()), count * sizeof(float)))
    throw std::runtime_error(place + " is cut short");
  return image;
}

static long memory_bytes(const std::string& key) {  // proc_pid_status(5); 0 where there is none
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(key + ":", 0) == 0) return atol(line.c_str() + key.size() + 1) * 1024;
  return 0;
}

struct Open {
  std::unique_ptr<Module> module;
  Image image;
  executorch::extension::TensorPtr input;

  Open(const std::string& file, const std::string& folder, std::unique_ptr<ETDumpGen> trace = nullptr)
      : module(new Module(file, Module::LoadMode::File, std::move(trace))), image(read_image(folder + "/images.npy")) {
    auto error = module->load_forward();
    if (error != executorch::runtime::Error::Ok)
      throw std::runtime_error("ExecuTorch cannot load it (error " + std::to_string(int(error)) + ")");
    input = executorch::extension::from_blob(image.values.data(), image.shape);
  }

  double run() {
    double begin = now_ms();
    auto result = module->forward(input);
    double took = now_ms() - begin;
    if (!result.ok())
      throw std::runtime_error("ExecuTorch cannot run it (error " + std::to_string(int(result.error())) + ")");
    return took;
  }
};

static void answer(const std::string& request, const std::string& folder, std::unique_ptr<Open>& open) {
  static std::string file;
  const std::string what = value(request, "do");
  if (what == "prepare") return say("");
  if (what == "usage") return say("\"cpu_seconds\": " + std::to_string(double(clock()) / CLOCKS_PER_SEC));
  if (what == "start") {
    file = value(request, "file");
    say("\"doing\": \"opening\", \"file\": " + quoted(file));
    std::ofstream("/proc/self/clear_refs") << "5";  // the kernel forgets the peak so far: proc_pid_clear_refs(5)
    long before = memory_bytes("VmRSS");
    double begin = now_ms();
    open.reset(new Open(file, folder));
    double load_ms = now_ms() - begin;
    double first_ms = open->run();
    long peak = memory_bytes("VmHWM") - before;
    return say(
        "\"imported\": [], \"load_ms\": " + std::to_string(load_ms) + ", \"first_inference_ms\": " +
        std::to_string(first_ms) + ", \"peak_memory_bytes\": " + (before ? std::to_string(peak) : "null"));
  }
  if (what == "block" && open) {
    say("\"doing\": \"timing\", \"file\": " + quoted(file));
    for (double begin = now_ms(); now_ms() - begin < 2;) open->run();  // another process has had the caches
    std::string taken;
    for (int left = atoi(value(request, "runs").c_str()); left > 0; --left)
      taken += std::to_string(open->run()) + (left > 1 ? ", " : "");
    return say("\"ms\": [" + taken + "]");
  }
  if (what == "trace") {  // ExecuTorch's own event trace, which the host reads
    std::unique_ptr<ETDumpGen> made(new ETDumpGen());
    ETDumpGen* trace = made.get();
    Open traced(value(request, "file"), folder, std::move(made));
    for (int left = atoi(value(request, "runs").c_str()); left > 0; --left) traced.run();
    auto dumped = trace->get_etdump_data();
    std::ofstream(folder + "/trace.etdp", std::ios::binary).write(static_cast<char*>(dumped.buf), dumped.size);
    free(dumped.buf);
    return say("\"trace\": " + quoted(folder + "/trace.etdp"));
  }
  say("\"error\": \"StageError\", \"message\": " + quoted("the runner does not know the request " + request));
}

int main(int count, char** words) {
  if (count == 2 && strcmp(words[1], "--version") == 0) {
    printf("repnets-runner executorch=%s\n", EXECUTORCH_VERSION);
    return 0;
  }
  if (count != 3) {
    fprintf(stderr, "runner THREADS FOLDER, or runner --version\n");
    return 2;
  }
  replies = fdopen(dup(1), "w");
  dup2(2, 1);  // what the runtime prints must not stand among the replies
  executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(atoi(words[1]));
  std::unique_ptr<Open> open;
  for (std::string request; std::getline(std::cin, request);) {
    try {
      answer(request, words[2], open);
    } catch (const std::exception& error) {
      say("\"error\": \"RunnerError\", \"message\": " + quoted(error.what()));
    }
  }
  return 0;
}
