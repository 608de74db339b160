// Spreads the tasks of one call over ONNX Runtime's own threads.
#pragma once

#include "read_layer.h"

namespace slim {

class Parallel {
 public:
  Parallel(ort::Api api, ort::Handle context) : api_(api), context_(context) {}

  // Calls task(0) to task(count - 1), in any order, on any thread. A task must not throw.
  template <class Task>
  void operator()(int64_t count, const Task& task) const {
    if (count == 1) return task(0);
    if (count <= 0) return;
    const auto trampoline = [](void* data, size_t index) {
      (*static_cast<const Task*>(data))(static_cast<int64_t>(index));
    };
    check(api_, ort::kKernelContextParallelFor, static_cast<ort::ConstHandle>(context_),
          static_cast<void (*)(void*, size_t)>(trampoline), static_cast<size_t>(count), size_t{0},
          const_cast<void*>(static_cast<const void*>(&task)));
  }

 private:
  ort::Api api_;
  ort::Handle context_;
};

}  // namespace slim
