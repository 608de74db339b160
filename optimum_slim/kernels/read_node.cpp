// Reads a node's attributes and initializers.
#include "read_node.h"

#include <algorithm>
#include <array>

namespace slim {
namespace {

constexpr size_t kLongestText = 64;

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

// Whether a status is success; the others are released.
bool succeeded(ort::Api api, ort::Status status) {
  if (status) ort::release(api, ort::kReleaseStatus, status);
  return !status;
}

}  // namespace

void fail(const std::string& what, const std::string& found, const std::string& expected) {
  throw ModelError(what + " is " + found + ", expected " + expected);
}

Shape shape_of(ort::Api api, ort::ConstHandle value, int* element_type) {
  ort::Handle info = nullptr;
  check(api, ort::kGetTensorTypeAndShape, value, &info);
  struct Released {
    ort::Api api;
    ort::Handle info;
    ~Released() { ort::release(api, ort::kReleaseTensorTypeAndShapeInfo, info); }
  } released{api, info};
  size_t rank = 0;
  check(api, ort::kGetDimensionsCount, static_cast<ort::ConstHandle>(info), &rank);
  Shape shape(rank);
  if (rank) check(api, ort::kGetDimensions, static_cast<ort::ConstHandle>(info), shape.data(), rank);
  if (element_type) check(api, ort::kGetTensorElementType, static_cast<ort::ConstHandle>(info), element_type);
  return shape;
}

size_t Node::input_count() const {
  size_t count = 0;
  check(api_, ort::kKernelInfoGetInputCount, info_, &count);
  return count;
}

int64_t Node::integer(const char* attribute, int64_t least, int64_t most) const {
  const std::string what = std::string("attribute ") + attribute;
  int64_t value = 0;
  if (!succeeded(api_, ort::call(api_, ort::kKernelInfoGetAttributeInt64, info_, attribute, &value)))
    fail(what, "missing or no int", "an int");
  if (value < least || value > most)
    fail(what, std::to_string(value),
         least == most ? std::to_string(least) : std::to_string(least) + " to " + std::to_string(most));
  return value;
}

float Node::real(const char* attribute) const {
  float value = 0;
  if (!succeeded(api_, ort::call(api_, ort::kKernelInfoGetAttributeFloat, info_, attribute, &value)))
    fail(std::string("attribute ") + attribute, "missing or no float", "a float");
  return value;
}

std::string Node::text(const char* attribute, const char* expected) const {
  std::array<char, kLongestText> text{};
  size_t size = text.size();
  if (!succeeded(api_, ort::call(api_, ort::kKernelInfoGetAttributeString, info_, attribute, text.data(), &size)))
    fail(std::string("attribute ") + attribute, "missing, no string or too long", expected);
  text.back() = '\0';
  return text.data();
}

int64_t Node::first_dimension(size_t index, const char* name) const {
  const Shape shape = shape_of(api_, initializer(index, name));
  if (shape.empty()) fail(std::string("input ") + name, "a scalar", "a dimension for the kept blocks");
  return shape[0];
}

const float* Node::floats(size_t index, const char* name, const Shape& shape, const Shape& or_shape) const {
  return static_cast<const float*>(data(index, name, ort::kFloat, shape, or_shape));
}

const uint8_t* Node::bytes(size_t index, const char* name, const Shape& shape) const {
  return static_cast<const uint8_t*>(data(index, name, ort::kUint8, shape, {}));
}

ort::ConstHandle Node::initializer(size_t index, const char* name) const {
  int is_constant = 0;
  ort::ConstHandle value = nullptr;
  if (!succeeded(api_,
                 ort::call(api_, ort::kKernelInfoGetConstantInputTensor, info_, index, &is_constant, &value)))
    is_constant = 0;
  if (!is_constant || !value) fail(std::string("input ") + name, "no initializer", "an initializer");
  return value;
}

const void* Node::data(size_t index, const char* name, int element_type, const Shape& shape,
                       const Shape& or_shape) const {
  const std::string what = std::string("input ") + name;
  const ort::ConstHandle value = initializer(index, name);
  int found_type = 0;
  const Shape found = shape_of(api_, value, &found_type);
  if (found_type != element_type)
    fail(what, "of element type " + std::to_string(found_type), "element type " + std::to_string(element_type));
  if (found != shape && (or_shape.empty() || found != or_shape))
    fail("the shape of " + what, text_of(found), text_of(shape) + (or_shape.empty() ? "" : " or " + text_of(or_shape)));
  void* data = nullptr;
  check(api_, ort::kGetTensorMutableData, value, &data);
  const bool empty = std::find(found.begin(), found.end(), 0) != found.end();
  if (!data && !empty) fail(what, "without data", "data");
  return data;
}

}  // namespace slim
