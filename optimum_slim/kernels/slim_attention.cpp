// SlimAttention: shapes are checked each time, as nothing of it is known before.
#include "slim_attention.h"

#include <algorithm>

#include "dispatch.h"
#include "memory.h"
#include "operators.h"
#include "parallel.h"

namespace slim {
namespace {

constexpr int64_t kMostHeads = 65536;

// Fewer multiply-adds than these are not worth waking a thread for.
constexpr int64_t kWorthSplitting = 4000000;
constexpr int64_t kMostTasks = 16;

struct Kernel {
  static constexpr const char* kName = "SlimAttention";
  static constexpr std::array<const char*, 4> kInputs{"query", "key", "value", "mask"};

  ort::Api api;
  int64_t heads;
  const Products* products;

  static Kernel made(ort::Api api, ort::ConstHandle info);
  void run(ort::Handle context) const;
};

[[noreturn]] void fail(const std::string& what, const std::string& expected) {
  throw ModelError(what + ", expected " + expected);
}

Kernel Kernel::made(ort::Api api, ort::ConstHandle info) {
  return {api, Node(api, info).integer("heads", 1, kMostHeads), &choose_products()};
}

// A size of the mask is that of the whole tensor, or 1, which holds for all.
void set_mask_strides(Attention& a, const Shape& mask) {
  const std::array<int64_t, 3> sizes{a.batch, a.heads, a.queries};
  // Beside a size of 0 the others may be too large to be multiplied.
  int64_t stride = std::find(mask.begin(), mask.end(), 0) == mask.end() ? mask[3] : 0;
  for (size_t axis : {2, 1, 0}) {
    if (mask[axis] != 1 && mask[axis] != sizes[axis])
      fail("size " + std::to_string(axis) + " of input mask is " + std::to_string(mask[axis]),
           "1 or " + std::to_string(sizes[axis]));
    a.mask_strides[axis] = mask[axis] == 1 ? 0 : stride;
    stride *= mask[axis];
  }
}

// One call without its output.
Attention checked(int64_t heads, const std::array<FloatInput, 4>& inputs) {
  for (size_t i = 0; i < 3; ++i)
    if (inputs[i].shape.size() != 3)
      fail(std::string("input ") + Kernel::kInputs[i] + " has another rank", "[batch, tokens, width]");
  const Shape &query = inputs[0].shape, &key = inputs[1].shape, &value = inputs[2].shape, &mask = inputs[3].shape;
  if (mask.size() != 4) fail("input mask has another rank", "[batch, heads, queries, keys]");
  if (key != value) fail("inputs key and value have different shapes", "equal ones");
  if (query[0] != key[0] || query[2] != key[2]) fail("inputs query and key differ in batch or width", "equal ones");
  if (query[2] % heads) fail("the width of input query is " + std::to_string(query[2]), "a multiple of heads");
  Attention a{};
  a.batch = query[0], a.queries = query[1], a.keys = key[1], a.heads = heads, a.size = query[2] / heads;
  if (mask[3] != a.keys) fail("the last size of input mask is " + std::to_string(mask[3]), std::to_string(a.keys));
  set_mask_strides(a, mask);
  a.query = inputs[0].data, a.key = inputs[1].data, a.value = inputs[2].data, a.mask = inputs[3].data;
  return a;
}

void Kernel::run(ort::Handle context) const {
  const auto inputs = float_inputs(api, context, kInputs);
  Attention a = checked(heads, inputs);
  a.output = float_output(api, context, inputs[0].shape);
  if (!a.batch || !a.queries || !a.size) return;
  if (!a.keys) fail("there are no keys", "one at least");

  constexpr int64_t kMostLanes = 16, kMostQueries = 4;
  const int64_t all = a.batch * a.heads, padded = round_up(a.keys, kMostLanes);
  const int64_t work = 2 * all * a.queries * a.keys * a.size;
  const int64_t tasks = work < kWorthSplitting ? 1 : std::min(all, kMostTasks);
  const int64_t floats = round_up(padded * (a.size + kMostQueries), kMostLanes);
  thread_local Scratch memory;
  float* const scratch = memory.take<float>(tasks * floats);
  Parallel(api, context)(tasks, [&](int64_t task) {
    products->attend(a, {all * task / tasks, all * (task + 1) / tasks}, scratch + task * floats);
  });
}

}  // namespace

const ort::CustomOp* attention_operator() { return operator_of<Kernel>(); }

}  // namespace slim
