// The operators as ONNX Runtime sees them: registered, created, run, their shapes inferred. No exception leaves this
// file.
#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "operators.h"
#include "slim_attention.h"
#include "slim_linear.h"
#include "slim_norm.h"

namespace slim {
namespace {

constexpr const char* kDomain = "ai.optimum.slim";

// The inputs of an operator: types of their elements, and how many are required.
struct Inputs {
  std::vector<int> types;
  size_t required;
};

// Of x and of one layer or several; where outputs meet another tensor, it follows those that are required. Zero points of
// each layer come last and may be left out.
Inputs inputs_of(const std::vector<int>& layer, bool zero_points, Ending ending, Join join) {
  std::vector<int> types{ort::kFloat};
  for (int i = 0; i < parts_of(join); ++i) types.insert(types.end(), layer.begin(), layer.end());
  if (meets_other(ending)) types.push_back(ort::kFloat);
  const size_t required = types.size();
  if (zero_points) types.insert(types.end(), parts_of(join), ort::kUint8);
  return {types, required};
}
const std::vector<int> kLayerTypes{ort::kUint8, ort::kUint8, ort::kFloat, ort::kFloat};
const std::vector<int> kBlockedTypes{ort::kUint8, ort::kFloat};

// What ONNX Runtime holds for one operator; it hands the CustomOp back to each of the functions below.
struct Operator : ort::CustomOp {
  std::string name;
  Inputs inputs;
  std::function<Layer(const Node&)> read;
};

struct Kernel {
  ort::Api api;
  const char* name;
  size_t other;  // the input that the outputs meet
  SlimLinear linear;
};

const Operator& self(const ort::CustomOp* op) { return *static_cast<const Operator*>(op); }

ort::Status create(const ort::CustomOp* op, ort::Api api, ort::ConstHandle info, void** kernel) {
  const Operator& one = self(op);
  return guarded(api, one.name.c_str(), [&] {
    const Layer layer = one.read(Node(api, info));
    SlimLinear linear(layer, choose_products());
    *kernel = new Kernel{api, one.name.c_str(), one.inputs.required - 1, std::move(linear)};
  });
}

void compute_rows(const Kernel& kernel, ort::Handle context) {
  auto [shape, x] = input<float>(kernel.api, context, 0, "x");
  if (shape.empty()) throw ModelError("input x has no dimensions, expected at least one");
  if (shape.back() != kernel.linear.inputs())
    throw ModelError("the last dimension of input x is " + std::to_string(shape.back()) + ", expected K, which is " +
                     std::to_string(kernel.linear.inputs()));
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  shape.back() = kernel.linear.outputs();
  const float* other = nullptr;
  if (meets_other(kernel.linear.ending())) {
    const FloatInput met = input<float>(kernel.api, context, kernel.other, "other");
    if (met.shape != shape) throw ModelError("input other does not have the shape of the output, which it meets");
    other = met.data;
  }
  float* const y = float_output(kernel.api, context, shape);
  if (empty) return;
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  kernel.linear.run(x, other, y, rows, Parallel(kernel.api, context));
}

ort::Status compute(void* data, ort::Handle context) {
  const Kernel& kernel = *static_cast<const Kernel*>(data);
  return guarded(kernel.api, kernel.name, [&] { compute_rows(kernel, context); });
}

// y has the dimensions of x, but N for the last. The inference context has no table of its own, hence this one.
std::atomic<ort::Api> g_api{nullptr};

struct ReleaseInfo {
  ort::Api api;
  void operator()(ort::Handle info) const { ort::release(api, ort::kReleaseTensorTypeAndShapeInfo, info); }
};

// Attribute N; 0 where it is missing or no int.
int64_t outputs_of(ort::Api api, ort::Handle context) {
  ort::ConstHandle attribute = nullptr;
  int64_t value = 0;
  size_t size = 0;
  ort::Status status =
      ort::call(api, ort::kShapeInferContextGetAttribute, static_cast<ort::ConstHandle>(context), "N", &attribute);
  if (!status)
    status = ort::call(api, ort::kReadOpAttr, attribute, static_cast<int>(ort::kIntAttribute),
                       static_cast<void*>(&value), sizeof value, &size);
  if (status) {
    ort::release(api, ort::kReleaseStatus, status);
    return 0;
  }
  return value;
}

void infer(ort::Api api, ort::Handle context) {
  ort::Handle x = nullptr;
  check(api, ort::kShapeInferContextGetInputTypeShape, static_cast<ort::ConstHandle>(context), size_t{0}, &x);
  size_t rank = 0;
  if (x) check(api, ort::kGetDimensionsCount, static_cast<ort::ConstHandle>(x), &rank);
  if (rank == 0) return;  // an unknown rank looks like this, too
  std::vector<int64_t> sizes(rank);
  std::vector<const char*> names(rank, "");
  check(api, ort::kGetDimensions, static_cast<ort::ConstHandle>(x), sizes.data(), rank);
  check(api, ort::kGetSymbolicDimensions, static_cast<ort::ConstHandle>(x), names.data(), rank);
  // A size that is unknown and has no name cannot be passed on: ONNX Runtime would take its -1 for a size.
  for (size_t i = 0; i + 1 < rank; ++i)
    if (sizes[i] < 0 && (!names[i] || !*names[i])) return;
  sizes.back() = outputs_of(api, context);
  if (sizes.back() <= 0) return;  // creating the kernel will say what is wrong
  names.back() = "";

  ort::Handle y = nullptr;
  check(api, ort::kCreateTensorTypeAndShapeInfo, &y);
  const std::unique_ptr<ort::Opaque, ReleaseInfo> released(y, {api});
  check(api, ort::kSetTensorElementType, y, static_cast<int>(ort::kFloat));
  check(api, ort::kSetDimensions, y, static_cast<const int64_t*>(sizes.data()), rank);
  check(api, ort::kSetSymbolicDimensions, y, names.data(), rank);
  check(api, ort::kShapeInferContextSetOutputTypeShape, static_cast<ort::ConstHandle>(context), size_t{0},
        static_cast<ort::ConstHandle>(y));
}

ort::Status infer_shape(const ort::CustomOp* op, ort::Handle context) {
  return guarded(g_api.load(), self(op).name.c_str(), [&] { infer(g_api.load(), context); });
}

Operator make_operator(const std::string& name, const Inputs& inputs, std::function<Layer(const Node&)> read) {
  Operator one{float_operator<Kernel>(), name, inputs, std::move(read)};
  one.GetName = [](const ort::CustomOp* op) { return self(op).name.c_str(); };
  one.GetInputTypeCount = [](const ort::CustomOp* op) { return self(op).inputs.types.size(); };
  one.GetInputType = [](const ort::CustomOp* op, size_t i) {
    const std::vector<int>& types = self(op).inputs.types;
    return i < types.size() ? types[i] : 0;
  };
  one.GetInputCharacteristic = [](const ort::CustomOp* op, size_t index) {
    return static_cast<int>(index < self(op).inputs.required ? ort::kRequired : ort::kOptional);
  };
  one.CreateKernelV2 = create;
  one.KernelComputeV2 = compute;
  one.InferOutputShapeFn = infer_shape;
  return one;
}

// How the name of an operator ends.
struct Last {
  std::string name;
  Ending ending;
  Join join;
};

std::vector<Last> lasts() {
  std::vector<Last> all{{"", Ending::kNone, Join::kNone},
                        {"Add", Ending::kAdd, Join::kNone},
                        {"Mul", Ending::kMul, Join::kNone},
                        {"Joined", Ending::kNone, Join::kBeside}};
  for (const auto& [name, ending] : {std::pair{"Relu", Ending::kRelu}, std::pair{"Gelu", Ending::kGelu},
                                     std::pair{"GeluTanh", Ending::kGeluTanh}, std::pair{"Silu", Ending::kSilu}}) {
    all.push_back({name, ending, Join::kNone});
    all.push_back({std::string(name) + "Gated", ending, Join::kGated});
  }
  return all;
}

// Every kind of pattern, with and without groups, and weights in blocks, with all that can come last: but weights in
// blocks have no activation of their own.
const std::vector<Operator>& operators() {
  static const std::vector<Operator> made = [] {
    std::vector<Operator> all;
    for (const Last& last : lasts()) {
      for (const auto& [kind_name, kind] :
           {std::pair{"", Kind::kDense}, std::pair{"Blocks", Kind::kBlocks}, std::pair{"Singles", Kind::kSingles}})
        for (const bool grouped : {false, true}) {
          const Form form{kind, grouped, last.ending, last.join};
          const std::string name = std::string("SlimLinear") + kind_name + (grouped ? "Grouped" : "") + last.name;
          all.push_back(make_operator(name, inputs_of(kLayerTypes, false, last.ending, last.join),
                                      [form](const Node& node) { return read_layer(node, form); }));
        }
      if (last.join == Join::kNone && last.ending != Ending::kNone && !meets_other(last.ending)) continue;
      all.push_back(make_operator(
          "SlimMatMulNBits" + last.name, inputs_of(kBlockedTypes, true, last.ending, last.join),
          [ending = last.ending, join = last.join](const Node& node) { return read_blocked_layer(node, ending, join); }));
    }
    return all;
  }();
  return made;
}

// One domain serves all sessions of the process; ONNX Runtime only borrows it.
ort::Handle shared_domain(ort::Api api) {
  static const ort::Handle domain = [&] {
    ort::Handle made = nullptr;
    check(api, ort::kCreateCustomOpDomain, kDomain, &made);
    for (const Operator& one : operators())
      check(api, ort::kCustomOpDomainAdd, made, static_cast<const ort::CustomOp*>(&one));
    for (const ort::CustomOp* one :
         {attention_operator(), rotary_attention_operator(), packed_attention_operator(), residual_norm_operator(),
          rms_norm_operator()})
      check(api, ort::kCustomOpDomainAdd, made, one);
    return made;
  }();
  return domain;
}

}  // namespace
}  // namespace slim

#define SLIM_EXPORT extern "C" __attribute__((visibility("default")))

SLIM_EXPORT slim::ort::Status RegisterCustomOps(slim::ort::Handle options, const slim::ort::ApiBase* base) {
  using namespace slim;
  ort::Api api = base ? base->GetApi(ort::kApiVersion) : nullptr;
  // Without the table there is no status to return either. The operators stay unknown, so functions serve instead.
  if (!api) return nullptr;
  for (int entry : {ort::kCreateStatus, ort::kCreateCustomOpDomain, ort::kKernelContextParallelFor})
    if (!api[entry]) return nullptr;
  g_api = api;
  return guarded(api, "RegisterCustomOps", [&] { check(api, ort::kAddCustomOpDomain, options, shared_domain(api)); });
}

// The instruction set in use; null where OPTIMUM_SLIM_ISA names one that this CPU cannot run.
SLIM_EXPORT const char* optimum_slim_isa() {
  try {
    return slim::choose_products().name;
  } catch (...) {
    return nullptr;
  }
}

// The instruction set at this place, fastest first; null behind the last.
SLIM_EXPORT const char* optimum_slim_supported_isa(int index) {
  try {
    const auto supported = slim::supported_products();
    return index >= 0 && index < static_cast<int>(supported.size()) ? supported[index]->name : nullptr;
  } catch (...) {
    return nullptr;
  }
}
