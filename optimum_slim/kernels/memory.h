// Memory at addresses that suit every vector instruction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace slim {

constexpr size_t kAlignment = 64;

template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(size_t count) {
    if (count > static_cast<size_t>(-1) / 2 / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(kAlignment)));
  }
  void deallocate(T* pointer, size_t) { ::operator delete(pointer, std::align_val_t(kAlignment)); }
  bool operator==(const AlignedAllocator&) const { return true; }
  bool operator!=(const AlignedAllocator&) const { return false; }
};

template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

// Memory for the length of one call. It keeps the largest size asked for, so that a running session stops allocating.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { release(); }

  template <class T>
  T* take(size_t count) {
    const size_t bytes = count * sizeof(T);
    if (bytes > bytes_) {
      release();
      memory_ = ::operator new(bytes, std::align_val_t(kAlignment));
      bytes_ = bytes;
    }
    return static_cast<T*>(memory_);
  }

 private:
  void release() {
    ::operator delete(memory_, std::align_val_t(kAlignment));
    memory_ = nullptr;
    bytes_ = 0;
  }

  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace slim
