// The part of ONNX Runtime's C interface that a custom operator needs, declared by hand: its headers are in no package
// registry, and its binary interface only ever grows at the end. OrtApi is a table of function pointers; each entry
// used here stands in `Entry` with its index. Version 17 of the table is the first that holds all of them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slim::ort {

constexpr uint32_t kApiVersion = 17;

struct Opaque;
using Handle = Opaque*;
using ConstHandle = const Opaque*;
using Status = Handle;  // null is success
using Api = void* const*;

struct ApiBase {
  Api (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

enum Entry : int {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kCreateTensorTypeAndShapeInfo = 57,
  kSetTensorElementType = 58,
  kSetDimensions = 59,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetSymbolicDimensions = 63,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeInt64 = 86,
  kKernelInfoGetAttributeString = 87,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShapeInfo = 99,
  kKernelInfoGetInputCount = 230,
  kKernelInfoGetConstantInputTensor = 249,
  kShapeInferContextGetInputTypeShape = 268,
  kShapeInferContextGetAttribute = 269,
  kShapeInferContextSetOutputTypeShape = 270,
  kSetSymbolicDimensions = 271,
  kReadOpAttr = 272,
  kKernelContextParallelFor = 274,
};

// An entry whose C declaration returns OrtStatus*.
template <class... Arguments>
Status call(Api api, Entry entry, Arguments... arguments) {
  return reinterpret_cast<Status (*)(Arguments...)>(api[entry])(arguments...);
}

// One of the entries that release an object; they return nothing.
inline void release(Api api, Entry entry, Handle handle) { reinterpret_cast<void (*)(Handle)>(api[entry])(handle); }

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

enum AttributeType : int { kIntAttribute = 1 };

enum Characteristic : int { kRequired = 0, kOptional = 1 };

enum ElementType : int { kFloat = 1, kUint8 = 2, kInt8 = 3, kBool = 9 };

// The layout of OrtCustomOp in version 17.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, Api, ConstHandle info);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, Handle context);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const CustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t index);
  int (*GetInputMemoryType)(const CustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status (*CreateKernelV2)(const CustomOp*, Api, ConstHandle info, void** kernel);
  Status (*KernelComputeV2)(void* kernel, Handle context);
  Status (*InferOutputShapeFn)(const CustomOp*, Handle context);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // namespace slim::ort
