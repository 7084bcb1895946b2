// conv2d and linear, as a matrix product over the input where it lies. A 1x1 convolution reads the
// value itself; any other copies the rows it needs, with their padding, to scratch, and with a
// stride in x sorts the columns of blocks by their remainder (phase), so that neighbouring outputs
// always read neighbouring pixels. Groups are blocks of input channels that a block of output
// channels reads; where groups are narrower than a block, the other channels' weights are zeros.
#include <algorithm>
#include <cstring>
#include <optional>

#include "engine/aligned.h"
#include "engine/computation.h"
#include "engine/computations/finish.h"
#include "engine/computations/matrix.h"
#include "engine/computations/pairs.h"

namespace quern {
namespace {

constexpr std::int64_t kMostWeights = std::int64_t{1} << 28;  // 1 GiB
// Of the copied rows: they and the weights of a tile should stay in a second-level cache.
constexpr std::int64_t kCopiedFloats = 48 * 1024;
// Blocks of output channels that are finished (activation, means) while still in the first-level
// cache: as many as the widest tile has.
constexpr std::int64_t kTogether = 4;

struct Shape2d {
  std::int64_t y, x;
};

struct Geometry {
  Extent in, out;
  std::int64_t groups = 1;
  Shape2d kernel = {1, 1}, stride = {1, 1}, dilation = {1, 1};
  std::int64_t top = 0, left = 0;
  bool planar = false;  // the input is the graph's own

  bool reads_in_place() const {
    return !planar && kernel.y == 1 && kernel.x == 1 && stride.y == 1 && stride.x == 1 &&
           in.height == out.height && in.width == out.width && top == 0 && left == 0;
  }
};

Geometry geometry_of(const Operation& operation, const Graph& graph) {
  const Node& node = *operation.node;
  Geometry g;
  g.in = extent_of(graph, operation.inputs[0]);
  g.out = extent_of(graph, operation.output);
  g.planar = operation.inputs[0] == 0;
  if (node.op->kind == OpKind::kLinear) return g;
  const Shape& weight = tensor(node, graph, "weight").shape;
  const auto& stride = integers(node, "stride");
  const auto& dilation = integers(node, "dilation");
  const auto& padding = integers(node, "padding");
  g.groups = integer(node, "groups");
  g.kernel = {weight[2], weight[3]};
  g.stride = {stride[0], stride[1]};
  g.dilation = {dilation[0], dilation[1]};
  g.top = padding[0];
  g.left = padding[1];
  return g;
}

// Consecutive blocks of output channels that read the same blocks of input channels.
struct Section {
  std::int64_t first = 0, blocks = 0;              // of output channels
  std::int64_t first_input = 0, input_blocks = 0;  // planar: channels
  std::int64_t weights = 0;                        // index of the first
};

class Convolution final : public Computation {
 public:
  Convolution(const Operation& operation, const Graph& graph, const Kernels& kernels)
      : kernels_(kernels),
        g_(geometry_of(operation, graph)),
        finish_(operation, graph, kernels),
        has_residual_(operation.has_residual),
        has_scale_(operation.has_scale) {
    unit_ = g_.planar ? 1 : kBlock;
    pack(operation, graph);
    if (g_.reads_in_place()) {
      if (sections_.size() == 1) {
        balanced_.emplace(kernels, weights_.get(), g_.out.blocks(), g_.in.blocks(),
                          g_.out.height * g_.out.width);
      }
      return;
    }
    phases_ = g_.planar ? 1 : g_.stride.x;
    columns_ =
        ((g_.out.width - 1) * g_.stride.x + (g_.kernel.x - 1) * g_.dilation.x + phases_) / phases_;
    const std::int64_t input_units = g_.planar ? g_.in.channels : g_.in.blocks();
    const std::int64_t row = input_units * copied_row();
    const auto rows_in = [&](std::int64_t rows) {
      return (rows - 1) * g_.stride.y + (g_.kernel.y - 1) * g_.dilation.y + 1;
    };
    rows_ = 1;
    while (rows_ < g_.out.height && rows_in(rows_ + 1) * row <= kCopiedFloats) ++rows_;
    // Parts of one size.
    const std::int64_t parts = (g_.out.height + rows_ - 1) / rows_;
    rows_ = (g_.out.height + parts - 1) / parts;
    copied_rows_ = rows_in(rows_);
    copied_floats_ = (copied_rows_ * row + kBlock - 1) / kBlock * kBlock;
    for (const Section& section : sections_) {
      for_each_run(section, [&](std::int64_t input, std::int64_t y, std::int64_t x) {
        // Of a tile's row, two cache lines.
        if (g_.planar)
          ahead_.push_back((input * g_.in.height + y) * g_.in.width +
                           std::min<std::int64_t>(x, 1) * kBlock);
        const std::int64_t column = x * g_.dilation.x;
        offsets_.push_back((input * copied_rows_ + y * g_.dilation.y) * copied_row() +
                           (column % phases_ * columns_ + column / phases_) * unit_);
      });
    }
  }

  bool by_rows() const override { return true; }

  Rows needs(Rows rows) const override {
    const std::int64_t first = rows.first * g_.stride.y - g_.top;
    const std::int64_t last =
        (rows.last - 1) * g_.stride.y - g_.top + (g_.kernel.y - 1) * g_.dilation.y + 1;
    const std::int64_t begin = std::clamp<std::int64_t>(first, 0, g_.in.height);
    return {begin, std::clamp<std::int64_t>(last, begin, g_.in.height)};
  }

  std::size_t scratch_floats() const override {
    if (!g_.reads_in_place()) return static_cast<std::size_t>(copied_floats_);
    const std::int64_t pixels = g_.out.height * g_.out.width;
    return static_cast<std::size_t>(offset_floats() +
                                    (balanced_ ? balanced_->pair_floats(pixels) : 0));
  }

  std::size_t weight_floats() const override { return weight_floats_; }

  void run(const Arguments& arguments) const override {
    if (g_.reads_in_place()) {
      run_in_place(arguments);
    } else {
      for (std::int64_t y = arguments.rows.first; y < arguments.rows.last; y += rows_) {
        run_copied(arguments, {y, std::min(y + rows_, arguments.rows.last)});
      }
    }
  }

 private:
  // At the beginning of the scratch memory, where the input is read in place: those of its blocks.
  std::int64_t offset_floats() const { return g_.in.blocks() * kBlock; }
  std::int64_t copied_row() const { return phases_ * columns_ * unit_; }

  template <typename Function>
  void for_each_run(const Section& section, Function function) const {
    for (std::int64_t i = 0; i < section.input_blocks; ++i) {
      for (std::int64_t y = 0; y < g_.kernel.y; ++y) {
        for (std::int64_t x = 0; x < g_.kernel.x; ++x) function(section.first_input + i, y, x);
      }
    }
  }

  std::int64_t runs(const Section& section) const {
    return section.input_blocks * g_.kernel.y * g_.kernel.x;
  }

  // The sections, and the weights in the order in which a tile reads them.
  void pack(const Operation& operation, const Graph& graph) {
    const Node& node = *operation.node;
    Matrix layer = matrix_of(node, graph);
    std::vector<float> composed;
    std::vector<float> composed_bias;
    if (operation.through != nullptr) {
      layer =
          compose(layer, matrix_of(*operation.through, graph), kernels_, composed, composed_bias);
    }
    const std::int64_t outputs = g_.out.channels / g_.groups;  // of a group
    const std::int64_t inputs = g_.in.channels / g_.groups;
    std::int64_t floats = 0;
    for (std::int64_t block = 0; block < g_.out.blocks(); ++block) {
      const std::int64_t last = std::min((block + 1) * kBlock, g_.out.channels) - 1;
      const std::int64_t first_channel = block * kBlock / outputs * inputs;
      const std::int64_t end_channel = (last / outputs + 1) * inputs;
      const std::int64_t unit = g_.planar ? 1 : kBlock;
      Section section = {block, 1, first_channel / unit, 0, floats};
      section.input_blocks = (end_channel + unit - 1) / unit - section.first_input;
      floats += runs(section) * unit_ * kBlock;
      if (floats > kMostWeights) {
        refuse(node, "its weights take more than 1 GiB in the engine's layout");
      }
      if (!sections_.empty() && sections_.back().first_input == section.first_input &&
          sections_.back().input_blocks == section.input_blocks) {
        ++sections_.back().blocks;
      } else {
        sections_.push_back(section);
      }
    }
    weight_floats_ = static_cast<std::size_t>(floats);
    weights_ = zeros(floats);
    bias_ = zeros(g_.out.blocks() * kBlock);
    const std::int64_t taps = g_.kernel.y * g_.kernel.x;
    const float* from = layer.weight.data();
    for (const Section& section : sections_) {
      const std::int64_t end = std::min((section.first + section.blocks) * kBlock, g_.out.channels);
      for (std::int64_t o = section.first * kBlock; o < end; ++o) {
        float* const to = weights_.get() + section.weights +
                          (o / kBlock - section.first) * runs(section) * unit_ * kBlock +
                          o % kBlock;
        const std::int64_t first = o / outputs * inputs;
        for (std::int64_t i = 0; i < inputs; ++i, from += taps) {
          const std::int64_t channel = first + i;
          const std::int64_t unit = g_.planar ? channel : channel / kBlock;
          const std::int64_t in_unit = g_.planar ? 0 : channel % kBlock;
          const std::int64_t run = (unit - section.first_input) * taps;
          for (std::int64_t tap = 0; tap < taps; ++tap) {
            to[((run + tap) * unit_ + in_unit) * kBlock] = from[tap];
          }
        }
      }
    }
    std::copy_n(layer.bias.data(), g_.out.channels, bias_.get());
  }

  void run_in_place(const Arguments& arguments) const {
    const View& in = arguments.inputs[0];
    auto* const offsets = reinterpret_cast<std::int64_t*>(arguments.scratch);
    for (std::int64_t i = 0; i < g_.in.blocks(); ++i) offsets[i] = i * in.plane;
    // Rows follow each other without a gap: they are one long row.
    const std::int64_t pixels = (arguments.rows.last - arguments.rows.first) * g_.out.width;
    const float* const input = in.data + arguments.rows.first * g_.in.row();
    Factor factor;
    if (balanced_) {
      factor = balanced_->factor(input, offsets, pixels, arguments.scratch + offset_floats());
    }
    for (const Section& section : sections_) {
      convolve(arguments, section, input, 0, offsets + section.first_input, arguments.rows, 1,
               pixels, factor);
    }
  }

  void run_copied(const Arguments& arguments, Rows rows) const {
    copy(arguments.inputs[0], rows, arguments.scratch);
    const std::int64_t* offsets = offsets_.data();
    for (const Section& section : sections_) {
      convolve(arguments, section, arguments.scratch, g_.stride.y * copied_row(), offsets, rows,
               rows.last - rows.first, g_.out.width, {});
      offsets += runs(section);
    }
  }

  void convolve(const Arguments& arguments, const Section& section, const float* input,
                std::int64_t input_row, const std::int64_t* offsets, Rows rows, std::int64_t count,
                std::int64_t pixels, const Factor& factor) const {
    const View& out = arguments.output;
    Convolve c = {};
    c.input = input;
    c.input_row = input_row;
    c.offsets = offsets;
    c.runs = runs(section);
    c.run = static_cast<int>(unit_);
    c.step = g_.planar ? g_.stride.x : kBlock;
    if (g_.planar) {
      c.ahead = arguments.inputs[0].data + rows.last * g_.stride.y * g_.in.width;
      c.ahead_row = g_.stride.y * g_.in.width;
      c.ahead_offsets = ahead_.data();
    }
    c.residual_row = c.output_row = g_.out.row();
    c.output_plane = out.plane;
    c.rows = count;
    c.pixels = pixels;
    c.low = finish_.low;
    c.high = finish_.high;
    for (std::int64_t done = 0; done < section.blocks; done += kTogether) {
      const std::int64_t block = section.first + done;
      c.blocks = std::min(kTogether, section.blocks - done);
      c.weights = weights_.get() + section.weights + done * c.runs * unit_ * kBlock;
      c.bias = bias_.get() + block * kBlock;
      c.output = out.data + block * out.plane + rows.first * g_.out.row();
      if (has_residual_) {
        const View& residual = arguments.inputs.back();
        c.residual = residual.data + block * residual.plane + rows.first * g_.out.row();
        c.residual_plane = residual.plane;
      }
      if (has_scale_) c.scale = arguments.inputs.back().data + block * kBlock;
      if (balanced_) {
        balanced_->convolve(c, factor, block);
      } else {
        kernels_.convolve(c);
      }
      finish_.rest(arguments, block, c.blocks, rows);
    }
  }

  // The input rows that the output rows are made from, zeros around them.
  void copy(const View& in, Rows rows, float* to) const {
    const std::int64_t inputs = g_.planar ? g_.in.channels : g_.in.blocks();
    const std::int64_t width = g_.in.width;
    const std::int64_t top = rows.first * g_.stride.y - g_.top;
    const std::int64_t count =
        (rows.last - rows.first - 1) * g_.stride.y + (g_.kernel.y - 1) * g_.dilation.y + 1;
    for (std::int64_t i = 0; i < inputs; ++i) {
      float* row = to + i * copied_rows_ * copied_row();
      for (std::int64_t y = 0; y < count; ++y, row += copied_row()) {
        if (!reads_row(y)) continue;
        const bool inside = top + y >= 0 && top + y < g_.in.height;
        const float* from = in.data + i * in.plane + (top + y) * width * unit_;
        for (std::int64_t phase = 0; phase < phases_; ++phase) {
          if (!reads_phase(phase)) continue;
          float* const columns = row + phase * columns_ * unit_;
          if (inside) {
            copy_columns(from, phase, columns);
          } else {
            std::fill_n(columns, columns_ * unit_, 0.0F);
          }
        }
      }
    }
  }

  // Whether any tap falls on that row, or on a column of that phase.
  bool reads_row(std::int64_t y) const { return reads(y, g_.kernel.y, g_.dilation.y, g_.stride.y); }
  bool reads_phase(std::int64_t x) const { return reads(x, g_.kernel.x, g_.dilation.x, phases_); }
  static bool reads(std::int64_t at, std::int64_t kernel, std::int64_t dilation,
                    std::int64_t stride) {
    for (std::int64_t tap = 0; tap < std::min(kernel, stride); ++tap) {
      if ((at - tap * dilation) % stride == 0) return true;
    }
    return false;
  }

  void copy_columns(const float* from, std::int64_t phase, float* to) const {
    // Column j holds pixel j * phases_ + start.
    const std::int64_t start = phase - g_.left;
    const std::int64_t first =
        std::min(columns_, start < 0 ? (-start + phases_ - 1) / phases_ : std::int64_t{0});
    const std::int64_t room = g_.in.width - start;
    const std::int64_t last =
        std::clamp(room <= 0 ? std::int64_t{0} : (room + phases_ - 1) / phases_, first, columns_);
    std::fill_n(to, first * unit_, 0.0F);
    std::fill_n(to + last * unit_, (columns_ - last) * unit_, 0.0F);
    if (phases_ == 1) {
      std::memcpy(to + first * unit_, from + (first + start) * unit_,
                  static_cast<std::size_t>((last - first) * unit_) * sizeof(float));
      return;
    }
    for (std::int64_t j = first; j < last; ++j) {
      std::memcpy(to + j * kBlock, from + (j * phases_ + start) * kBlock, kBlock * sizeof(float));
    }
  }

  const Kernels& kernels_;
  Geometry g_;
  Finish finish_;
  bool has_residual_, has_scale_;
  std::int64_t unit_ = kBlock;  // floats of one pixel of what is read as one
  std::vector<Section> sections_;
  std::size_t weight_floats_ = 0;
  AlignedFloats weights_, bias_;
  std::optional<BalancedWeights> balanced_;
  // Of the copied rows: output rows at a time, input rows, phases, columns of each.
  std::int64_t rows_ = 0, copied_rows_ = 0, phases_ = 1, columns_ = 0, copied_floats_ = 0;
  std::vector<std::int64_t> offsets_;  // of the copied rows, by section
  std::vector<std::int64_t> ahead_;    // of the input rows that are copied next
};

}  // namespace

std::unique_ptr<Computation> prepare_convolution(const Operation& operation, const Graph& graph,
                                                 const Kernels& kernels) {
  return std::make_unique<Convolution>(operation, graph, kernels);
}

}  // namespace quern
