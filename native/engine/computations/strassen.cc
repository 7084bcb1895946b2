// 1x1 convolutions by Strassen's algorithm (Gaussian Elimination is not Optimal, 1969) in
// Winograd's form, which has the fewest sums. A is the matrix of pixels by input channels, B that
// of input by output channels, C = AB; cut in halves both ways, seven products make what takes
// eight:
//   S1 = A21 + A22   S2 = S1 - A11   S3 = A11 - A21   S4 = A12 - S2
//   T1 = B12 - B11   T2 = B22 - T1   T3 = B22 - B12   T4 = B21 - T2
//   U = A11 B11 + S2 T2       V = U + S1 T1
//   C11 = A11 B11 + A12 B21   C12 = V + S4 B22
//   C21 = U + S3 T3 + A22 T4  C22 = V + S3 T3
// The T are made when the model is loaded, in all 7/4 of the memory. Each product is a convolution
// (kernels/convolve.cc or pairs.cc), to which what else is in a sum is the residual; kernels/strassen.cc has
// the sums that are left. Cutting the seven products once more saves 1 % of the largest layers'
// time only, as their weights are then read from beyond the second-level cache.
#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "engine/aligned.h"
#include "engine/computation.h"
#include "engine/computations/finish.h"
#include "engine/computations/pairs.h"

namespace quern {
namespace {

constexpr std::int64_t kProducts = 7;
// Blocks of output channels in one half of B, as many as the widest tile of convolve() has: B is
// first cut into parts of twice as many.
constexpr std::int64_t kTogether = 4;
// Pixels in A: their sums should stay in a second-level cache, and fewer pixels would read the
// weights more often.
constexpr std::int64_t kMostPixels = 224;
constexpr std::int64_t kMostSums = 96 * 1024;  // floats

constexpr float kInfinity = std::numeric_limits<float>::infinity();
alignas(64) constexpr std::array<float, kTogether * kBlock> kZeros = {};

// Whether it takes less time than the direct convolution. As measured: sums cost too much with few
// channels, and with few pixels the time goes by the weights that are read; more so where products
// of pairs take less time.
bool pays(const Extent& in, const Extent& out, const Kernels& kernels) {
  const bool pairs = kernels.convolve_pairs != nullptr;
  const std::int64_t fewest_pixels = pairs ? 100 : 40;
  const std::int64_t fewest_channels = pairs ? 256 : 128;
  constexpr std::int64_t kMostChannels = 4096;
  return out.height * out.width >= fewest_pixels &&
         std::min(in.channels, out.channels) >= fewest_channels &&
         std::max(in.channels, out.channels) <= kMostChannels && in.blocks() % 2 == 0 &&
         out.blocks() % 2 == 0;
}

class Strassen final : public Computation {
 public:
  Strassen(const Operation& operation, const Graph& graph, const Kernels& kernels)
      : kernels_(kernels),
        in_(extent_of(graph, operation.inputs[0])),
        out_(extent_of(graph, operation.output)),
        finish_(operation, graph, kernels),
        has_residual_(operation.has_residual),
        has_scale_(operation.has_scale),
        half_in_(in_.blocks() / 2) {
    batch_ = batch_of(out_.height * out_.width,
                      std::min(kMostPixels, kMostSums / (in_.blocks() * kBlock)));
    pack(*operation.node, graph);
    balanced_.emplace(kernels, weights_.get(), kProducts * out_.blocks() / 2, half_in_,
                      half(batch_));
  }

  bool by_rows() const override { return true; }

  std::size_t scratch_floats() const override {
    const std::int64_t blocks = 4 * half_in_ + 3 * std::min(kTogether, out_.blocks() / 2);
    return static_cast<std::size_t>(offset_floats() + (blocks * kBlock + kProducts) * half(batch_));
  }

  std::size_t weight_floats() const override {
    return static_cast<std::size_t>(kProducts * half_in_ * out_.blocks() / 2 * kBlock * kBlock);
  }

  void run(const Arguments& arguments) const override {
    const Rows rows = arguments.rows;
    const std::int64_t end = rows.last * out_.width;
    const std::int64_t batch = batch_of(end - rows.first * out_.width, batch_);
    for (std::int64_t begin = rows.first * out_.width; begin < end; begin += batch) {
      run_batch(arguments, begin, std::min(batch, end - begin));
    }
    finish_.rest(arguments, 0, out_.blocks(), rows);
  }

 private:
  // A part of C, or what is kept to be added to it.
  struct Sum {
    float* data;
    std::int64_t plane;
  };

  // Batches of about one size.
  static std::int64_t batch_of(std::int64_t pixels, std::int64_t most) {
    const std::int64_t batches = (pixels + most - 1) / most;
    return (pixels + batches - 1) / batches;
  }
  // With an odd number of pixels the one in the middle is in both halves.
  static std::int64_t half(std::int64_t pixels) { return (pixels + 1) / 2; }
  // Blocks of output channels in each half of the part of B that begins with `block`.
  std::int64_t half_out(std::int64_t block) const {
    return std::min(kTogether, (out_.blocks() - block) / 2);
  }
  std::int64_t product_weights(std::int64_t blocks) const {
    return half_in_ * blocks * kBlock * kBlock;
  }
  // At the beginning of the scratch memory: the offsets of the blocks of A's halves, and of S's.
  std::int64_t offset_floats() const { return half_in_ * kBlock; }

  // B11, B21, B22 and the T, in the order in which they are used.
  void pack(const Node& node, const Graph& graph) {
    const std::span<const float> weight = tensor(node, graph, "weight").data;
    const std::span<const float> bias = tensor(node, graph, "bias").data;
    const auto channels = static_cast<std::size_t>(out_.blocks() * kBlock);
    bias_ = allocate_floats(channels);
    bias_21_ = allocate_floats(channels);
    std::fill_n(bias_.get(), channels, 0.0F);
    std::copy_n(bias.data(), out_.channels, bias_.get());
    weights_ = allocate_floats(weight_floats());
    float* part = weights_.get();
    const std::int64_t inputs = half_in_ * kBlock;
    const auto b = [&](std::int64_t i, std::int64_t o) {
      return o < out_.channels && i < in_.channels
                 ? double{weight[static_cast<std::size_t>(o * in_.channels + i)]}
                 : 0.0;
    };
    for (std::int64_t block = 0; block < out_.blocks();) {
      const std::int64_t blocks = half_out(block);
      const std::int64_t outputs = blocks * kBlock;
      const std::int64_t product = product_weights(blocks);
      for (std::int64_t o = 0; o < outputs; ++o) {
        const std::int64_t left = block * kBlock + o;
        bias_21_[static_cast<std::size_t>(left)] =
            bias_[static_cast<std::size_t>(left)] - bias_[static_cast<std::size_t>(left + outputs)];
        for (std::int64_t i = 0; i < inputs; ++i) {
          const double b11 = b(i, left);
          const double b12 = b(i, left + outputs);
          const double b21 = b(i + inputs, left);
          const double b22 = b(i + inputs, left + outputs);
          const double t1 = b12 - b11;
          const double t2 = b22 - t1;
          float* to = part + (o / kBlock * inputs + i) * kBlock + o % kBlock;
          for (const double value : {b11, t2, b21, t1, b22 - b12, b22, b21 - t2}) {
            *to = static_cast<float>(value);
            to += product;
          }
        }
      }
      part += kProducts * product;
      block += 2 * blocks;
    }
  }

  void run_batch(const Arguments& arguments, std::int64_t begin, std::int64_t pixels) const {
    const View& in = arguments.inputs[0];
    const std::int64_t plane = half(pixels) * kBlock;
    auto* const offsets = reinterpret_cast<std::int64_t*>(arguments.scratch);
    auto* const sum_offsets = offsets + half_in_;
    for (std::int64_t i = 0; i < half_in_; ++i) {
      offsets[i] = i * in.plane;
      sum_offsets[i] = i * plane;
    }
    const std::int64_t second = (pixels - half(pixels)) * kBlock;
    const float* const a11 = in.data + begin * kBlock;
    const float* const a12 = a11 + half_in_ * in.plane;
    float* const s1 = arguments.scratch + offset_floats();
    float* const s2 = s1 + half_in_ * plane;
    float* const s3 = s2 + half_in_ * plane;
    float* const s4 = s3 + half_in_ * plane;
    for (std::int64_t i = 0; i < half_in_; ++i) {
      const std::int64_t from = offsets[i];
      const std::int64_t to = sum_offsets[i];
      kernels_.strassen_input({a11 + from, a12 + from, a11 + second + from, a12 + second + from,
                               s1 + to, s2 + to, s3 + to, s4 + to, plane});
    }
    float* const scratch = s4 + half_in_ * plane;
    float* pairs = scratch + 3 * std::min(kTogether, out_.blocks() / 2) * plane;
    const auto factor = [&](const float* data, const std::int64_t* its_offsets) {
      const Factor made = balanced_->factor(data, its_offsets, half(pixels), pairs);
      pairs += half(pixels);
      return made;
    };
    const std::array<Factor, kProducts> factors = {
        factor(a11, offsets),         factor(s2, sum_offsets), factor(a12, offsets),
        factor(s1, sum_offsets),      factor(s3, sum_offsets), factor(s4, sum_offsets),
        factor(a12 + second, offsets)};
    for (std::int64_t block = 0; block < out_.blocks(); block += 2 * half_out(block)) {
      multiply(arguments, factors, block, begin, pixels, scratch);
    }
  }

  // The part of C that begins with `block`.
  void multiply(const Arguments& arguments, const std::array<Factor, kProducts>& factors,
                std::int64_t block, std::int64_t begin, std::int64_t pixels, float* scratch) const {
    const std::int64_t blocks = half_out(block);
    const std::int64_t plane = half(pixels) * kBlock;
    const std::int64_t second = (pixels - half(pixels)) * kBlock;
    const View& out = arguments.output;
    const View& last = arguments.inputs.back();
    float* const c11 = out.data + block * out.plane + begin * kBlock;
    float* const c12 = c11 + blocks * out.plane;
    const float* const residual =
        has_residual_ ? last.data + block * last.plane + begin * kBlock : nullptr;
    const float* const scale = has_scale_ ? last.data + block * kBlock : nullptr;
    const float* const left_bias = bias_.get() + block * kBlock;
    const float* const right_bias = left_bias + blocks * kBlock;
    const Sum u = {scratch, plane};
    const Sum v = {u.data + blocks * plane, plane};  // A11 B11 first
    const Sum w = {v.data + blocks * plane, plane};  // S3 T3 and C22's bias, then with U

    Convolve c = {};
    c.blocks = blocks;
    c.pixels = half(pixels);
    const auto product = [&](const Factor& factor, const Sum& sum, const float* bias,
                             const Sum& to) {
      c.residual = sum.data;
      c.residual_plane = sum.plane;
      c.bias = bias;
      c.output = to.data;
      c.output_plane = to.plane;
      // Before `block` are as many parts of all products.
      const std::int64_t before = kProducts * block / 2 + (&factor - factors.data()) * blocks;
      balanced_->convolve(c, factor, before);
    };
    // What is kept, for the last time read.
    const auto part = [&](const Factor& factor, const Sum& sum, const float* bias, float* to) {
      c.low = finish_.low;
      c.high = finish_.high;
      const std::int64_t right = to < c12 ? 0 : blocks;
      c.scale = scale == nullptr ? nullptr : scale + right * kBlock;
      for (std::int64_t i = 0; residual != nullptr && i < blocks; ++i) {
        float* const line = sum.data + i * plane;
        kernels_.combine(Arithmetic::kAdd, line,
                         residual + (to - c11 - right * out.plane) + (i + right) * last.plane,
                         kBlock, -kInfinity, kInfinity, line, plane);
      }
      product(factor, sum, bias, {to, out.plane});
      c.low = -kInfinity;
      c.high = kInfinity;
      c.scale = nullptr;
    };
    c.low = -kInfinity;
    c.high = kInfinity;
    product(factors[0], {}, kZeros.data(), v);
    product(factors[1], v, kZeros.data(), u);
    part(factors[2], v, left_bias, c11);
    product(factors[3], u, kZeros.data(), v);
    product(factors[4], {}, right_bias, w);
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::int64_t at = i * plane;
      kernels_.strassen_output(
          {v.data + at, u.data + at, w.data + at,
           residual == nullptr ? nullptr : residual + (blocks + i) * last.plane + second,
           scale == nullptr ? nullptr : scale + (blocks + i) * kBlock, c12 + i * out.plane + second,
           plane, finish_.low, finish_.high});
    }
    part(factors[5], v, right_bias, c12);
    part(factors[6], w, bias_21_.get() + block * kBlock, c11 + second);
  }

  const Kernels& kernels_;
  Extent in_, out_;
  Finish finish_;
  bool has_residual_, has_scale_;
  std::int64_t half_in_;    // blocks
  std::int64_t batch_ = 0;  // pixels
  // bias_21_: of C21, which is made from what has the bias of C22.
  AlignedFloats weights_, bias_, bias_21_;
  std::optional<BalancedWeights> balanced_;
};

}  // namespace

bool strassen_pays(const Operation& operation, const Graph& graph, const Kernels& kernels) {
  const Node* node = operation.node;
  if (node == nullptr || operation.inputs[0] == 0 || operation.through != nullptr) return false;
  return is_pointwise(*node, graph) &&
         pays(extent_of(graph, operation.inputs[0]), extent_of(graph, operation.output), kernels);
}

std::unique_ptr<Computation> prepare_strassen(const Operation& operation, const Graph& graph,
                                              const Kernels& kernels) {
  return std::make_unique<Strassen>(operation, graph, kernels);
}

}  // namespace quern
