// Designs by pattern, density and number of rows, and how their work is split into tasks.
#include "slim_linear.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <thread>

namespace slim {
namespace {

// Rows that are quantized before they are multiplied: bounds the scratch memory of long inputs.
constexpr int64_t kRowsAtOnce = 512;

// A window of activations read from a row's last quad ends this far behind it.
constexpr int64_t kWindowBytes = 128;

// Up to this many rows the weights behind a mask are expanded for each eight of them, above once for all.
constexpr int64_t kMostMaskedRows = 16;

// Above this share of kept weights the dense product is faster.
constexpr double kMostMasked = 0.85;

// Work is measured in cycles, roughly. Waking a thread takes some 20 microseconds: below this, one does it sooner.
constexpr int64_t kCyclesWorthSplitting = 250000;
constexpr int64_t kCyclesOfTask = 25000;
constexpr int64_t kMostTasks = 64;

int64_t tasks_for(int64_t cycles) {
  if (cycles < kCyclesWorthSplitting) return 1;
  return std::min(cycles / kCyclesOfTask, kMostTasks);
}

// Of dot products of 64 bytes of weights with each of some rows: the weights come from a cache that is two cycles away.
int64_t cycles_of(int64_t dots, int64_t rows, const Limits& limits) { return dots * (limits.dot_cycles * rows + 2); }

// Quantizing and packing take about half a cycle a value.
int64_t packing_cycles(int64_t rows, int64_t inputs) { return rows * inputs / 2; }

// Shares the products of tiles and parts of the panels out among threads. A thread stays with the tiles that it packed,
// which lie in its caches, and takes over others' when it is done with them.
class TileShares {
 public:
  TileShares(int64_t tiles, int64_t parts) : tiles_(tiles), parts_(parts) {}

  struct Share {
    int64_t tile, part;
  };

  // For the calling thread; may be called tiles * parts times in all. Whoever comes to a tile first packs it.
  template <class Pack>
  Share next(const Pack& pack) {
    static thread_local const char self = 0;
    for (;;) {
      const int64_t tile = choose(&self, pack), part = states_[tile].begun.fetch_add(1, std::memory_order_relaxed);
      if (part >= parts_) continue;  // another thread came first
      while (!states_[tile].packed.load(std::memory_order_acquire)) std::this_thread::yield();
      return {tile, part};
    }
  }

 private:
  struct State {
    std::atomic<const void*> owner{nullptr};
    std::atomic<int64_t> begun{0};
    std::atomic<bool> packed{false};
  };

  template <class Pack>
  int64_t choose(const void* self, const Pack& pack) {
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      const void* nobody = nullptr;
      std::atomic<const void*>& owner = states_[tile].owner;
      if (!owner.load(std::memory_order_relaxed) && owner.compare_exchange_strong(nobody, self)) {
        pack(tile);
        states_[tile].packed.store(true, std::memory_order_release);
        return tile;
      }
    }
    // All own tiles meet some panels before the next panels come: these stay in a near cache meanwhile.
    const int64_t own = least_begun([&](const void* owner) { return owner == self; });
    if (own >= 0) return own;
    const int64_t other = std::max<int64_t>(0, least_begun([](const void*) { return true; }));
    states_[other].owner.store(self, std::memory_order_relaxed);
    return other;
  }

  // Of the tiles with parts left whose owner `counts`; -1 if there is none.
  template <class Counts>
  int64_t least_begun(const Counts& counts) const {
    int64_t found = -1, least = parts_;
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      const int64_t begun = states_[tile].begun.load(std::memory_order_relaxed);
      if (begun < least && counts(states_[tile].owner.load(std::memory_order_relaxed))) found = tile, least = begun;
    }
    return found;
  }

  int64_t tiles_, parts_;
  std::array<State, kRowsAtOnce / kPanel> states_;
};

int64_t count_kept(const Layer& layer) {
  int64_t blocks = 0;
  for (int64_t byte = 0; byte < (layer.block_rows() * layer.block_columns() + 7) / 8; ++byte)
    blocks += __builtin_popcount(layer.mask[byte]);
  return blocks * layer.block_inputs * layer.block_outputs;
}

}  // namespace

SlimLinear::SlimLinear(const Layer& layer, const Products& products)
    : products_(products),
      inputs_(layer.inputs),
      quads_(round_up(layer.inputs, 4) / 4),
      panels_(round_up(layer.outputs, kPanel) / kPanel),
      outputs_(layer.gated ? layer.outputs / 2 : layer.outputs),
      groups_(layer.groups),
      ending_(layer.ending),
      gated_(layer.gated),
      scales_(pack_scales(layer)),
      kept_(count_kept(layer)) {
  const double density = static_cast<double>(kept_) / (static_cast<double>(layer.inputs) * layer.outputs);
  const bool sparse = layer.pattern != Pattern::kDense, grouped = layer.groups > 1;
  const bool singles = layer.block_inputs == 1;
  const Limits& limits = products.limits;
  if (layer.bits == 4) {
    nibbles_ = pack_nibbles(layer);
  } else if (!singles && !grouped && (sparse || limits.dense_rows < kAnyRows)) {
    few_rows_ = sparse ? limits.block_rows[layer.block_outputs / 2] : limits.dense_rows;
    blocks_ = pack_blocks(layer, products.offset);
    if (products.pairs) pair_blocks(*blocks_, products.offset);
    lanes_ = sparse && products.lanes && layer.block_outputs == 4;
    if (sparse && products.windows && !lanes_) windows_ = pack_windows(layer, products.look_up);
  } else if (sparse && !grouped && products.byte_windows && density <= limits.singles) {
    few_rows_ = limits.single_rows[0] + std::llround(density * (limits.single_rows[1] - limits.single_rows[0]));
    byte_windows_ = pack_byte_windows(layer, products.look_up);
    fours_ = pack_fours(layer, products.offset, products.pairs);
  } else if (sparse && products.masked && density <= kMostMasked) {
    masks_ = pack_masks(layer);
  }
  if (!lanes_ && !windows_ && !byte_windows_ && !masks_ && !nibbles_) dense_ = pack_dense(layer, products.offset);
}

void SlimLinear::run(const float* x, const float* other, float* y, int64_t rows, const Parallel& parallel) const {
  int64_t count;
  for (int64_t first = 0; first < rows; first += count) {
    count = std::min(kRowsAtOnce, rows - first);
    const float* from = x + first * inputs_;
    float* to = y + first * outputs_;
    const float* met = gated_ ? to : other ? other + first * outputs_ : nullptr;
    const Epilogue epilogue{outputs_, groups_, ending_, gated_, scales_.scale.data(), scales_.bias.data(), to, met};
    if ((blocks_ || fours_) && count > few_rows_) {
      const int64_t tile = kPanel * tile_vectors(count);
      if (products_.limits.split_rest && count > tile) count -= count % tile;
      run_tiles(from, epilogue, to, count, parallel);
    } else if (masks_ && count > kMostMaskedRows) {
      run_expanded(from, epilogue, to, count, parallel);
    } else {
      run_rows(from, epilogue, to, count, parallel);
    }
  }
}

// Panels that meet stay together.
Range SlimLinear::part_of_panels(int64_t index, int64_t parts) const {
  const int64_t all = most_tasks(), together = panels_ / all;
  return {all * index / parts * together, all * (index + 1) / parts * together};
}

// Vectors of 16 rows that a tile has.
int SlimLinear::tile_vectors(int64_t rows) const {
  if (fours_) return 4;
  const int64_t most_of_two = products_.limits.split_rest ? 48 : 32;
  return std::min(products_.sums / blocks_->outputs, rows <= 16 ? 1 : rows <= most_of_two ? 2 : 4);
}

// The memory of one call: values, scales and sums of quantized rows.
QuantizedRows SlimLinear::quantized_rows(int64_t rows) const {
  thread_local Scratch values, scales, sums;
  const int64_t stride = round_up(inputs_, kAlignment) + kWindowBytes;
  return {stride, values.take<uint8_t>(rows * stride), scales.take<float>(rows * groups_),
          sums.take<int32_t>(rows * groups_)};
}

// Outputs in lanes: every task takes all rows and some panels.
void SlimLinear::run_rows(const float* x, const Epilogue& epilogue, float* y, int64_t rows,
                          const Parallel& parallel) const {
  thread_local Scratch widened, first_rests;
  thread_local std::vector<Rest> rests;
  QuantizedRows quantized = quantized_rows(rows);
  const Windows& look_up = products_.look_up;
  const int offset = windows_ ? look_up.offset : byte_windows_ ? look_up.byte_offset : 0;  // else the weights carry it
  products_.quantize(x, rows, inputs_, groups_, offset, quantized);
  if (nibbles_) {
    const int32_t factor = nibbles_->zero_points.empty() ? -kMiddleOfNibbles : -1;
    for (int64_t i = 0; i < rows * groups_; ++i) quantized.sums[i] *= factor;
  }
  if (dense_ && groups_ == 1 && products_.split) {
    rests.clear();
    auto* const first = first_rests.take<int64_t>(rows + 1);
    products_.split(quantized, rows, quads_, rests, first);
    if (!rests.empty()) quantized.rests = rests.data(), quantized.first_rests = first;
  }
  if (dense_ && groups_ > 1 && products_.widen) {
    uint8_t* const values = widened.take<uint8_t>(rows * 2 * quantized.stride);
    products_.widen(quantized, rows, quads_, values);
    quantized.values = values;
    quantized.stride *= 2;
  }

  const Range all{0, rows};
  int64_t dots = panels_ * quads_;
  if (lanes_) dots = kept_ / 64;
  if (windows_) dots = static_cast<int64_t>(windows_->windows.size());
  if (byte_windows_) dots = static_cast<int64_t>(byte_windows_->windows.size());
  const int64_t tasks = std::min(tasks_for(cycles_of(dots, rows, products_.limits)), most_tasks());
  parallel(tasks, [&](int64_t task) {
    const Range mine = part_of_panels(task, tasks);
    if (lanes_)
      products_.lanes(*blocks_, epilogue, quantized, all, mine, y);
    else if (windows_)
      products_.windows(*windows_, epilogue, quantized, all, mine, y);
    else if (byte_windows_)
      products_.byte_windows(*byte_windows_, epilogue, quantized, all, mine, y);
    else if (nibbles_)
      products_.nibbles(*nibbles_, epilogue, quantized, all, mine, y);
    else if (masks_)
      products_.masked(*masks_, epilogue, quantized, all, mine, y);
    else
      products_.dense({quads_, dense_->group_quads, 0, dense_->weights.data()}, epilogue, quantized, all, mine, y);
  });
}

// Weights behind a mask are expanded a few panels at a time, which all rows then share.
void SlimLinear::run_expanded(const float* x, const Epilogue& epilogue, float* y, int64_t rows,
                              const Parallel& parallel) const {
  constexpr int64_t kPanelsAtOnce = 2;
  thread_local Scratch scratch;
  const QuantizedRows quantized = quantized_rows(rows);
  products_.quantize(x, rows, inputs_, groups_, 0, quantized);

  const int64_t tasks = std::min(tasks_for(cycles_of(panels_ * quads_, rows, products_.limits)), most_tasks());
  const int64_t bytes = kPanelsAtOnce * quads_ * 64;
  uint8_t* const expanded = scratch.take<uint8_t>(tasks * bytes);
  parallel(tasks, [&](int64_t task) {
    const Range mine = part_of_panels(task, tasks);
    for (int64_t panel = mine.begin; panel < mine.end; panel += kPanelsAtOnce) {
      const Range some{panel, std::min(panel + kPanelsAtOnce, mine.end)};
      uint8_t* weights = expanded + task * bytes;
      products_.expand(*masks_, some, weights);
      products_.dense({quads_, masks_->group_quads, panel, weights}, epilogue, quantized, {0, rows}, some, y);
    }
  });
}

// Rows in lanes: every task takes one tile of rows and some panels.
void SlimLinear::run_tiles(const float* x, const Epilogue& epilogue, float* y, int64_t rows,
                           const Parallel& parallel) const {
  thread_local Scratch scratch;
  const int vectors = tile_vectors(rows);
  const int64_t rows_of_tile = kPanel * vectors;
  const int64_t tiles = round_up(rows, rows_of_tile) / rows_of_tile;
  const QuantizedRows quantized = quantized_rows(rows);
  RowTiles packed{vectors, quads_ * 64 * vectors, nullptr, quantized.scales};
  packed.values = scratch.take<uint8_t>(tiles * packed.bytes);

  const auto pack_tile = [&](int64_t tile) {
    const int64_t first = tile * rows_of_tile, count = std::min(rows_of_tile, rows - first);
    const QuantizedRows own{quantized.stride, quantized.values + first * quantized.stride, quantized.scales + first,
                            quantized.sums + first};
    uint8_t* to = packed.values + tile * packed.bytes;
    products_.quantize(x + first * inputs_, count, inputs_, 1, products_.offset, own);
    products_.pack_tile(own, count, quads_, vectors, to);
    if (fours_) products_.spread_tile(to, quads_);
  };
  const auto multiply = [&](int64_t tile, Range panels) {
    if (fours_)
      products_.fours(*fours_, epilogue, packed, tile, rows, panels, y);
    else
      products_.blocks(*blocks_, epilogue, packed, tile, rows, panels, y);
  };

  const int64_t dots = kept_ / 4 * tiles * vectors;
  const int64_t wanted = tasks_for(dots * products_.limits.dot_cycles + packing_cycles(rows, inputs_));
  if (wanted == 1) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      pack_tile(tile);
      multiply(tile, {0, panels_});
    }
    return;
  }
  const int64_t parts = std::clamp<int64_t>(wanted / tiles, 1, most_tasks());
  TileShares shares(tiles, parts);
  parallel(tiles * parts, [&](int64_t) {
    const TileShares::Share share = shares.next(pack_tile);
    multiply(share.tile, part_of_panels(share.part, parts));
  });
}

}  // namespace slim
