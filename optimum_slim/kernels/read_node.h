// What a node of the model has: its attributes and initializers, checked one by one.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace slim {

// A mistake of the model: its text names the attribute or input, what was found and what was expected.
struct ModelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void fail(const std::string& what, const std::string& found, const std::string& expected);

// A status that ONNX Runtime itself gave; whoever catches it hands it on or releases it.
struct RuntimeFailure {
  ort::Status status;
};

template <class... Arguments>
void check(ort::Api api, ort::Entry entry, Arguments... arguments) {
  if (ort::Status status = ort::call(api, entry, arguments...)) throw RuntimeFailure{status};
}

using Shape = std::vector<int64_t>;

Shape shape_of(ort::Api api, ort::ConstHandle value, int* element_type = nullptr);

// The methods throw ModelError where something is missing or not as it is asked for.
class Node {
 public:
  Node(ort::Api api, ort::ConstHandle info) : api_(api), info_(info) {}

  size_t input_count() const;
  int64_t integer(const char* attribute, int64_t least, int64_t most) const;
  float real(const char* attribute) const;
  std::string text(const char* attribute, const char* expected) const;

  // Of an initializer.
  int64_t first_dimension(size_t index, const char* name) const;
  // The data of an initializer of one of these shapes; null where it has no elements.
  const float* floats(size_t index, const char* name, const Shape& shape, const Shape& or_shape = {}) const;
  const uint8_t* bytes(size_t index, const char* name, const Shape& shape) const;

 private:
  ort::ConstHandle initializer(size_t index, const char* name) const;
  const void* data(size_t index, const char* name, int element_type, const Shape& shape, const Shape& or_shape) const;

  ort::Api api_;
  ort::ConstHandle info_;
};

}  // namespace slim
