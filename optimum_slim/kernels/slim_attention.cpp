// SlimAttention, SlimRotaryAttention and SlimPackedAttention: shapes are checked each time, as nothing is known of them before.
#include "slim_attention.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "dispatch.h"
#include "memory.h"
#include "operators.h"
#include "parallel.h"

namespace slim {
namespace {

constexpr int64_t kMostHeads = 65536;
constexpr int64_t kMostTokens = int64_t{1} << 40;

// Fewer multiply-adds than these are not worth waking a thread for.
constexpr int64_t kWorthSplitting = 4000000;
constexpr int64_t kMostTasks = 16;

// What a mask adds to the score of a key that is not seen is below this, and then no power of it is left.
constexpr float kUnseen = -1e30f;

[[noreturn]] void fail(const std::string& what, const std::string& expected) {
  throw ModelError(what + ", expected " + expected);
}

void check_rank(const Shape& shape, size_t rank, const char* name, const char* expected) {
  if (shape.size() != rank) fail(std::string("input ") + name + " has another rank", expected);
}

void check_tokens(const FloatInput& query, const FloatInput& key, const FloatInput& value) {
  for (const auto& [one, name] : {std::pair{&query, "query"}, std::pair{&key, "key"}, std::pair{&value, "value"}})
    check_rank(one->shape, 3, name, "[batch, tokens, width]");
  if (key.shape != value.shape) fail("inputs key and value have different shapes", "equal ones");
}

// Needs the sizes. A size of the mask is that of the whole tensor, or 1, which holds for all.
void set_mask_strides(Attention& a, const Shape& mask) {
  check_rank(mask, 4, "mask", "[batch, heads, queries, keys]");
  if (mask[3] != a.keys) fail("the last size of input mask is " + std::to_string(mask[3]), std::to_string(a.keys));
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

// Then the other sizes may be too large to be multiplied, likewise.
bool no_answers(const Attention& a) { return !a.batch || !a.queries || !a.size; }

bool sees(float added) { return !(added < kUnseen); }
bool sees(uint8_t seen) { return seen; }
bool alike(float added) { return added == 0; }
bool alike(uint8_t seen) { return seen; }

// Where a query sees nothing, all keys are alike.
template <class T>
Sight sight_of(const T* mask, int64_t keys) {
  Sight sight{0, keys, true};
  while (sight.end > 0 && !sees(mask[sight.end - 1])) --sight.end;
  if (!sight.end) return {0, keys, false};
  while (!sees(mask[sight.begin])) ++sight.begin;
  for (int64_t t = sight.begin; t < sight.end; ++t) sight.solid &= alike(mask[t]);
  return sight;
}

// Once for all tasks, and for all heads that share a mask.
void look(Attention& a, Scratch& memory) {
  const int64_t heads = a.mask_strides[1] ? a.heads : 1;
  a.sight_strides[0] = heads * a.queries, a.sight_strides[1] = a.mask_strides[1] ? a.queries : 0;
  Sight* to = memory.take<Sight>(a.batch * heads * a.queries);
  a.sights = to;
  for (int64_t batch = 0; batch < a.batch; ++batch)
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t query = 0; query < a.queries; ++query) {
        const int64_t at = batch * a.mask_strides[0] + head * a.mask_strides[1] + query * a.mask_strides[2];
        *to++ = a.mask ? sight_of(a.mask + at, a.keys) : sight_of(a.seen + at, a.keys);
      }
}

void run_heads(Attention& a, const Products& products, const Parallel& parallel) {
  if (!a.keys) fail("there are no keys", "one at least");
  thread_local Scratch sights;
  look(a, sights);
  const int64_t all = a.batch * a.heads, work = 2 * all * a.queries * a.keys * a.size;
  const int64_t tasks = work < kWorthSplitting ? 1 : std::min(all, kMostTasks);
  const int64_t floats = attention_scratch(a);
  thread_local Scratch memory;
  float* const scratch = memory.take<float>(tasks * floats);
  parallel(tasks, [&](int64_t task) {
    products.attend(a, {all * task / tasks, all * (task + 1) / tasks}, scratch + task * floats);
  });
}

struct Kernel {
  static constexpr const char* kName = "SlimAttention";
  static constexpr std::array<const char*, 4> kInputs{"query", "key", "value", "mask"};

  ort::Api api;
  int64_t heads;
  const Products* products;

  static Kernel made(ort::Api api, ort::ConstHandle info) {
    return {api, Node(api, info).integer("heads", 1, kMostHeads), &choose_products()};
  }
  void run(ort::Handle context) const;
};

void Kernel::run(ort::Handle context) const {
  const auto [query, key, value, mask] = float_inputs(api, context, kInputs);
  check_tokens(query, key, value);
  if (query.shape[0] != key.shape[0] || query.shape[2] != key.shape[2])
    fail("inputs query and key differ in batch or width", "equal ones");
  const int64_t width = query.shape[2];
  if (width % heads) fail("the width of input query is " + std::to_string(width), "a multiple of heads");
  Attention a{};
  a.batch = query.shape[0], a.queries = query.shape[1], a.keys = key.shape[1];
  a.heads = a.kv_heads = heads, a.size = width / heads, a.scale = 1;
  set_mask_strides(a, mask.shape);
  a.output = float_output(api, context, query.shape);
  if (no_answers(a)) return;
  a.query = query.data, a.key = key.data, a.value = value.data, a.mask = mask.data;
  a.kv_strides[0] = a.keys * width, a.kv_strides[1] = a.size, a.kv_strides[2] = width;
  run_heads(a, *products, Parallel(api, context));
}

// The cosines and sines by which heads of some tokens are turned: [batch, tokens, size / 2].
struct Angles {
  const float *cos, *sin;
  int64_t half;

  // The head of a token, counted over the batch.
  void turn(const float* __restrict from, int64_t token, float* __restrict to) const {
    const float *__restrict c = cos + token * half, *__restrict s = sin + token * half;
    for (int64_t i = 0; i < half; ++i) {
      const float first = from[i], second = from[half + i];
      to[i] = first * c[i] - second * s[i];
      to[half + i] = second * c[i] + first * s[i];
    }
  }
};

// Some heads of each token: `first` is where they start in a row.
struct Rows {
  const float* data;
  int64_t first, stride;

  const float* of(int64_t token) const { return data + token * stride + first; }
};

// The new tokens of a call, before they are turned.
struct Tokens {
  int64_t batch, queries, keys, size;  // keys are the new ones, size is that of a head
  Rows query, key, value;
};

struct Apart {
  static constexpr const char* kName = "SlimRotaryAttention";
  static constexpr std::array<const char*, 10> kInputs{"query",      "key",       "value",     "mask",    "past_key",
                                                       "past_value", "query_cos", "query_sin", "key_cos", "key_sin"};
  static constexpr size_t kMask = 3, kQueryAngles = 6, kKeyAngles = 8;

  static Tokens read(const std::array<FloatInput, kMask>& inputs, int64_t heads, int64_t kv_heads) {
    const auto& [query, key, value] = inputs;
    check_tokens(query, key, value);
    const Shape &q = query.shape, &k = key.shape;
    if (q[0] != k[0]) fail("inputs query and key differ in batch", "an equal one");
    if (q[2] % (2 * heads))
      fail("the width of input query is " + std::to_string(q[2]), "a multiple of q_num_heads, by an even number");
    const int64_t size = q[2] / heads;
    if (k[2] != kv_heads * size)
      fail("the width of input key is " + std::to_string(k[2]), std::to_string(kv_heads * size));
    return {q[0], q[1], k[1], size, {query.data, 0, q[2]}, {key.data, 0, k[2]}, {value.data, 0, k[2]}};
  }
};

// Queries, keys and values beside each other, as one linear gives them.
struct Packed {
  static constexpr const char* kName = "SlimPackedAttention";
  static constexpr std::array<const char*, 6> kInputs{"packed", "mask", "past_key", "past_value", "cos", "sin"};
  static constexpr size_t kMask = 1, kQueryAngles = 4, kKeyAngles = 4;

  static Tokens read(const std::array<FloatInput, kMask>& inputs, int64_t heads, int64_t kv_heads) {
    const FloatInput& packed = inputs[0];
    check_rank(packed.shape, 3, "packed", "[batch, tokens, width]");
    const int64_t batch = packed.shape[0], tokens = packed.shape[1], width = packed.shape[2];
    const int64_t all = heads + 2 * kv_heads;
    if (width % (2 * all))
      fail("the width of input packed is " + std::to_string(width),
           "a multiple of q_num_heads and twice kv_num_heads together, by an even number");
    const int64_t size = width / all;
    const auto rows = [&](int64_t head) { return Rows{packed.data, head * size, width}; };
    return {batch, tokens, tokens, size, rows(0), rows(heads), rows(heads + kv_heads)};
  }
};

template <class Form>
struct RotaryKernel {
  static constexpr const char* kName = Form::kName;
  static constexpr auto kInputs = Form::kInputs;

  ort::Api api;
  int64_t heads, kv_heads;
  float scale;
  const Products* products;

  static RotaryKernel made(ort::Api api, ort::ConstHandle info) {
    const Node node(api, info);
    const int64_t heads = node.integer("q_num_heads", 1, kMostHeads);
    const int64_t kv_heads = node.integer("kv_num_heads", 1, kMostHeads);
    if (heads % kv_heads) fail("attribute q_num_heads is " + std::to_string(heads), "a multiple of kv_num_heads");
    return {api, heads, kv_heads, node.real("scale"), &choose_products()};
  }
  void run(ort::Handle context) const;

 private:
  FloatInput floats(ort::Handle context, size_t index) const {
    return input<float>(api, context, index, kInputs[index]);
  }
  // Cosines at `index`, sines behind them.
  Angles angles(ort::Handle context, size_t index, const Shape& shape) const {
    const std::array<FloatInput, 2> found{floats(context, index), floats(context, index + 1)};
    for (size_t i : {0, 1})
      if (found[i].shape != shape)
        fail(std::string("input ") + kInputs[index + i] + " has another shape",
             "batch, tokens and half the size of a head");
    return {found[0].data, found[1].data, shape[2]};
  }
};

// The past of some heads, [batch, heads, tokens, size], and `count` new tokens; `put(from, token, to)` writes the head of
// one.
template <class Put>
void append(const Attention& a, int64_t count, const float* past, const Rows& added, float* to, const Put& put) {
  if (!a.batch || !a.size) return;
  const int64_t old = (a.keys - count) * a.size;
  for (int64_t batch = 0; batch < a.batch; ++batch)
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      if (old) std::memcpy(to, past, old * sizeof *to);
      past += old, to += old;
      for (int64_t token = batch * count; token < (batch + 1) * count; ++token, to += a.size)
        put(added.of(token) + head * a.size, token, to);
    }
}

template <class Form>
void RotaryKernel<Form>::run(ort::Handle context) const {
  std::array<FloatInput, Form::kMask> inputs;
  for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = floats(context, i);
  const auto seen = input<uint8_t>(api, context, Form::kMask, kInputs[Form::kMask]);
  const FloatInput past_key = floats(context, Form::kMask + 1), past_value = floats(context, Form::kMask + 2);
  const Tokens tokens = Form::read(inputs, heads, kv_heads);
  Attention a{};
  a.batch = tokens.batch, a.queries = tokens.queries, a.size = tokens.size;
  a.heads = heads, a.kv_heads = kv_heads, a.scale = scale;
  const Shape& past = past_key.shape;
  check_rank(past, 4, "past_key", "[batch, heads, tokens, size]");
  if (past != past_value.shape) fail("inputs past_key and past_value have different shapes", "equal ones");
  if (past[0] != a.batch || past[1] != kv_heads || past[3] != a.size)
    fail("input past_key has other sizes", "batch, kv_num_heads and the size of a head");
  if (past[2] > kMostTokens || tokens.keys > kMostTokens)
    fail("there are too many tokens, past or new", std::to_string(kMostTokens) + " at most");
  const Angles of_queries = angles(context, Form::kQueryAngles, {a.batch, a.queries, a.size / 2});
  const Angles of_keys = angles(context, Form::kKeyAngles, {a.batch, tokens.keys, a.size / 2});
  a.keys = past[2] + tokens.keys;
  set_mask_strides(a, seen.shape);

  const int64_t width = heads * a.size;
  a.output = float_output(api, context, {a.batch, a.queries, width}, 0);
  const Shape cache{a.batch, kv_heads, a.keys, a.size};
  float* const keys = float_output(api, context, cache, 1);
  float* const values = float_output(api, context, cache, 2);
  append(a, tokens.keys, past_key.data, tokens.key, keys,
         [&](const float* from, int64_t token, float* to) { of_keys.turn(from, token, to); });
  append(a, tokens.keys, past_value.data, tokens.value, values,
         [&](const float* from, int64_t, float* to) { std::memcpy(to, from, a.size * sizeof *to); });
  if (no_answers(a)) return;
  thread_local Scratch memory;
  float* const turned = memory.take<float>(a.batch * a.queries * width);
  for (int64_t token = 0; token < a.batch * a.queries; ++token)
    for (int64_t at = 0; at < width; at += a.size)
      of_queries.turn(tokens.query.of(token) + at, token, turned + token * width + at);
  a.query = turned, a.key = keys, a.value = values, a.seen = seen.data;
  a.kv_strides[0] = kv_heads * a.keys * a.size, a.kv_strides[1] = a.keys * a.size, a.kv_strides[2] = a.size;
  run_heads(a, *products, Parallel(api, context));
}

template <class Form>
const ort::CustomOp* rotary_operator() {
  static const ort::CustomOp op = [] {
    ort::CustomOp one = *operator_of<RotaryKernel<Form>>();
    one.GetInputType = [](const ort::CustomOp*, size_t i) -> int { return i == Form::kMask ? ort::kBool : ort::kFloat; };
    one.GetOutputTypeCount = [](const ort::CustomOp*) { return size_t{3}; };
    return one;
  }();
  return &op;
}

}  // namespace

const ort::CustomOp* attention_operator() { return operator_of<Kernel>(); }
const ort::CustomOp* rotary_attention_operator() { return rotary_operator<Apart>(); }
const ort::CustomOp* packed_attention_operator() { return rotary_operator<Packed>(); }

}  // namespace slim
