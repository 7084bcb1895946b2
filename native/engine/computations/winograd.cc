// conv2d with 3x3 weights and stride 1 by Winograd's algorithm (kernels/winograd.cc): a tile of 4x4
// outputs takes 36 multiplications a pair of channels instead of 144, and 4 times the memory for
// weights; of 2x2, 16 instead of 36, and 16/9 of the memory.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "engine/aligned.h"
#include "engine/computation.h"
#include "engine/computations/finish.h"
#include "engine/computations/pairs.h"

namespace quern {
namespace {

constexpr std::int64_t kTap = 3;
constexpr std::int64_t kMostElements = 36;  // of a tile in the transformed domain
// Of the tiles in the transformed domain that are computed together, input and output: they should
// stay in a second-level cache, with room for the weights that go by.
constexpr std::int64_t kBatchFloats = 128 * 1024;
// Weights too large for that cache are read once a batch: fewer tiles would wait for memory.
constexpr std::int64_t kFewestTiles = 28;
// Blocks of output channels computed together, as many as the widest tile of convolve() has.
constexpr std::int64_t kTogether = 4;

// Rows of G (see kernels/winograd.cc) for tiles of `size` outputs.
using WeightTransform = std::vector<std::array<double, kTap>>;

WeightTransform weight_transform(int size) {
  std::vector<double> points = {0, 1, -1};
  if (size == 4) points = {0, std::sqrt(0.5), -std::sqrt(0.5), std::sqrt(2.0), -std::sqrt(2.0)};
  WeightTransform rows;
  for (const double point : points) {
    double product = 1;
    for (const double other : points) {
      if (other != point) product *= point - other;
    }
    rows.push_back({1 / product, point / product, point * point / product});
  }
  rows.push_back({0, 0, 1});
  return rows;
}

struct Geometry {
  Extent in, out;
  std::int64_t top = 0, left = 0;
};

Geometry geometry_of(const Operation& operation, const Graph& graph) {
  const auto& padding = integers(*operation.node, "padding");
  return {extent_of(graph, operation.inputs[0]), extent_of(graph, operation.output), padding[0],
          padding[1]};
}

std::int64_t tiles_across(std::int64_t outputs, std::int64_t size) {
  return (outputs + size - 1) / size;
}

// Outputs to a side of a tile; 0 where the direct convolution is as fast, or memory is at stake. As
// measured: transforms cost too much with few channels, and with few tiles the time goes by the
// weights that are read: then the larger tiles take their memory for nothing.
int tile_size(const Geometry& g) {
  constexpr std::int64_t kFewestChannels = 16;
  constexpr std::int64_t kMostChannels = 4096;
  constexpr std::int64_t kCachedWeights = 256 * 1024;  // floats
  if (std::min(g.in.channels, g.out.channels) < kFewestChannels) return 0;
  if (std::max(g.in.channels, g.out.channels) > kMostChannels) return 0;
  const auto tiles = [&](std::int64_t size) {
    return tiles_across(g.out.height, size) * tiles_across(g.out.width, size);
  };
  const std::int64_t weights = 36 * g.in.blocks() * g.out.blocks() * kBlock * kBlock;
  if (tiles(4) >= 25 || (tiles(4) >= 4 && weights <= kCachedWeights)) return 4;
  return tiles(2) >= 16 ? 2 : 0;
}

class Winograd final : public Computation {
 public:
  Winograd(const Operation& operation, const Graph& graph, const Kernels& kernels)
      : kernels_(kernels),
        g_(geometry_of(operation, graph)),
        size_(tile_size(g_)),
        finish_(operation, graph, kernels),
        has_residual_(operation.has_residual) {
    const std::int64_t a_tile =
        elements() * (g_.in.blocks() + std::min(kTogether, g_.out.blocks())) * kBlock;
    batch_ = batch_of(tiles_of({0, g_.out.height}), std::max(kBatchFloats / a_tile, kFewestTiles));
    for (std::int64_t i = 0; i < g_.in.blocks(); ++i) offsets_.push_back(i * batch_ * kBlock);
    pack(*operation.node, graph);
    balanced_.emplace(kernels, weights_.get(), elements() * g_.out.blocks(), g_.in.blocks(),
                      batch_);
  }

  // run() can do any rows, but tiles that are cut off and weights that are read again cost more
  // than is gained.
  bool by_rows() const override { return false; }

  Rows needs(Rows rows) const override {
    const std::int64_t first = std::clamp<std::int64_t>(rows.first - g_.top, 0, g_.in.height);
    const std::int64_t last = rows.last - g_.top + kTap - 1;
    return {first, std::clamp<std::int64_t>(last, first, g_.in.height)};
  }

  std::size_t scratch_floats() const override {
    return static_cast<std::size_t>(elements() *
                                    (plane(g_.in.blocks()) + plane(together(g_.out.blocks())) +
                                     batch_));
  }

  std::size_t weight_floats() const override {
    return static_cast<std::size_t>(elements() * g_.out.blocks() * g_.in.blocks() * kBlock *
                                    kBlock);
  }

  void run(const Arguments& arguments) const override {
    const Rows rows = arguments.rows;
    const std::int64_t tiles = tiles_of(rows);
    const std::int64_t batch = batch_of(tiles, batch_);
    for (std::int64_t begin = 0; begin < tiles; begin += batch) {
      run_batch(arguments, begin, std::min(batch, tiles - begin));
    }
    finish_.rest(arguments, 0, g_.out.blocks(), rows);
  }

 private:
  using Factors = std::array<Factor, kMostElements>;

  std::int64_t elements() const { return (size_ + kTap - 1) * (size_ + kTap - 1); }
  std::int64_t columns() const { return tiles_across(g_.out.width, size_); }
  std::int64_t tiles_of(Rows rows) const {
    return tiles_across(rows.last - rows.first, size_) * columns();
  }
  static std::int64_t together(std::int64_t blocks) { return std::min(kTogether, blocks); }

  // Batches of about one size.
  static std::int64_t batch_of(std::int64_t tiles, std::int64_t most) {
    const std::int64_t batches = (tiles + most - 1) / most;
    return (tiles + batches - 1) / batches;
  }

  // Floats of one element of a batch: an odd number of cache lines, as the elements of a tile would
  // otherwise compete for the same places in the cache.
  std::int64_t plane(std::int64_t blocks) const { return (blocks * batch_ | 1) * kBlock; }

  // G g G^T, in [element][out block][in block * 16][16].
  void pack(const Node& node, const Graph& graph) {
    const Tensor& weight = tensor(node, graph, "weight");
    const Tensor& bias = tensor(node, graph, "bias");
    const WeightTransform rows = weight_transform(size_);
    const std::int64_t inputs = g_.in.blocks() * kBlock;
    const std::int64_t outputs = g_.out.blocks() * kBlock;
    weights_ = allocate_floats(weight_floats());
    std::fill_n(weights_.get(), weight_floats(), 0.0F);
    for (std::int64_t o = 0; o < g_.out.channels; ++o) {
      for (std::int64_t i = 0; i < g_.in.channels; ++i) {
        const float* g = weight.data.data() + (o * g_.in.channels + i) * kTap * kTap;
        float* to = weights_.get() + (o / kBlock * inputs + i) * kBlock + o % kBlock;
        for (const auto& down : rows) {
          std::array<double, kTap> line = {};
          for (std::size_t x = 0; x < kTap; ++x) {
            for (std::size_t y = 0; y < kTap; ++y) line[x] += down[y] * g[y * kTap + x];
          }
          for (const auto& across : rows) {
            *to =
                static_cast<float>(across[0] * line[0] + across[1] * line[1] + across[2] * line[2]);
            to += outputs * inputs;
          }
        }
      }
    }
    bias_ = allocate_floats(static_cast<std::size_t>(outputs));
    std::fill_n(bias_.get(), outputs, 0.0F);
    std::copy_n(bias.data.data(), g_.out.channels, bias_.get());
  }

  void run_batch(const Arguments& arguments, std::int64_t begin, std::int64_t tiles) const {
    float* const transformed = arguments.scratch;
    float* const products = transformed + elements() * plane(g_.in.blocks());
    transform_input(arguments, begin, tiles, transformed);
    float* pairs = products + elements() * plane(together(g_.out.blocks()));
    Factors factors;
    for (std::int64_t element = 0; element < elements(); ++element, pairs += tiles) {
      factors[static_cast<std::size_t>(element)] = balanced_->factor(
          transformed + element * plane(g_.in.blocks()), offsets_.data(), tiles, pairs);
    }
    for (std::int64_t block = 0; block < g_.out.blocks(); block += kTogether) {
      const std::int64_t blocks = std::min(kTogether, g_.out.blocks() - block);
      multiply(factors, block, blocks, tiles, products);
      transform_output(arguments, begin, tiles, block, blocks, products);
    }
  }

  void transform_input(const Arguments& arguments, std::int64_t begin, std::int64_t tiles,
                       float* transformed) const {
    const View& in = arguments.inputs[0];
    const Rows readable = needs(arguments.rows);
    WinogradInput w = {};
    w.width = g_.in.width;
    w.first = readable.first;
    w.last = readable.last;
    w.top = arguments.rows.first - g_.top;
    w.left = -g_.left;
    w.size = size_;
    w.columns = columns();
    w.begin = begin;
    w.tiles = tiles;
    w.plane = plane(g_.in.blocks());
    for (std::int64_t i = 0; i < g_.in.blocks(); ++i) {
      w.input = in.data + i * in.plane;
      w.transformed = transformed + i * batch_ * kBlock;
      kernels_.winograd_input(w);
    }
  }

  // For each element, a matrix product of tiles with weights: a 1x1 convolution.
  void multiply(const Factors& factors, std::int64_t block, std::int64_t blocks, std::int64_t tiles,
                float* products) const {
    alignas(64) static constexpr std::array<float, kTogether * kBlock> kZeros = {};
    Convolve c = {};
    c.bias = kZeros.data();
    c.output_plane = batch_ * kBlock;
    c.blocks = blocks;
    c.pixels = tiles;
    c.low = -std::numeric_limits<float>::infinity();
    c.high = std::numeric_limits<float>::infinity();
    for (std::int64_t element = 0; element < elements(); ++element) {
      c.output = products + element * plane(together(g_.out.blocks()));
      balanced_->convolve(c, factors[static_cast<std::size_t>(element)],
                          element * g_.out.blocks() + block);
    }
  }

  void transform_output(const Arguments& arguments, std::int64_t begin, std::int64_t tiles,
                        std::int64_t block, std::int64_t blocks, const float* products) const {
    WinogradOutput w = {};
    w.plane = plane(together(g_.out.blocks()));
    w.size = size_;
    w.columns = columns();
    w.begin = begin;
    w.tiles = tiles;
    w.width = g_.out.width;
    w.first = arguments.rows.first;
    w.last = arguments.rows.last;
    w.low = finish_.low;
    w.high = finish_.high;
    for (std::int64_t i = 0; i < blocks; ++i) {
      w.transformed = products + i * batch_ * kBlock;
      w.bias = bias_.get() + (block + i) * kBlock;
      w.output = arguments.output.data + (block + i) * arguments.output.plane;
      if (has_residual_) {
        const View& residual = arguments.inputs.back();
        w.residual = residual.data + (block + i) * residual.plane;
      }
      kernels_.winograd_output(w);
    }
  }

  const Kernels& kernels_;
  Geometry g_;
  int size_;
  Finish finish_;
  bool has_residual_;
  std::int64_t batch_ = 0;             // tiles
  std::vector<std::int64_t> offsets_;  // of the input's blocks in one element of a batch
  AlignedFloats weights_, bias_;
  std::optional<BalancedWeights> balanced_;
};

}  // namespace

bool winograd_pays(const Operation& operation, const Graph& graph) {
  const Node* node = operation.node;
  if (node == nullptr || node->op->kind != OpKind::kConv2d || operation.inputs[0] == 0) {
    return false;
  }
  const Shape& weight = tensor(*node, graph, "weight").shape;
  const Shape ones = {1, 1};
  return weight[2] == kTap && weight[3] == kTap && integers(*node, "stride") == ones &&
         integers(*node, "dilation") == ones && integer(*node, "groups") == 1 &&
         tile_size(geometry_of(operation, graph)) > 0;
}

std::unique_ptr<Computation> prepare_winograd(const Operation& operation, const Graph& graph,
                                              const Kernels& kernels) {
  return std::make_unique<Winograd>(operation, graph, kernels);
}

}  // namespace quern
