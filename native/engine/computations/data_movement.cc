// What puts the elements of values in another place. Whole blocks of channels and whole runs of
// pixels are copied at once where they stay together; the rest goes element by element.
#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/computation.h"
#include "engine/computations/elements.h"

namespace quern {
namespace {

using At2 = std::array<std::int64_t, 2>;

// ---- channels: slice and concat along them, channel_shuffle, and the graph's planar input ----

// Each channel of the output is a channel of an input, of the same height and width.
class ChannelMovement : public Computation {
 public:
  explicit ChannelMovement(const Extent& out) : out_(out) {}

  bool by_rows() const final { return true; }

  void run(const Arguments& arguments) const final {
    const View& out = arguments.output;
    const std::int64_t offset = arguments.rows.first * out_.row();
    const std::int64_t count = (arguments.rows.last - arguments.rows.first) * out_.row();
    for (std::int64_t block = 0; block < out_.blocks(); ++block) {
      const std::int64_t first = block * kBlock;
      const int used = static_cast<int>(std::min<std::int64_t>(kBlock, out_.channels - first));
      const float* lanes[kBlock];
      bool together = true;  // one block of an input
      for (int i = 0; i < used; ++i) {
        const Source source = source_of(first + i);
        const View& in = arguments.inputs[source.input];
        const std::int64_t lane = source.channel % kBlock;
        lanes[i] = in.data + source.channel / kBlock * in.plane + lane + offset;
        together = together && lane == i && lanes[i] == lanes[0] + i;
      }
      float* to = out.data + block * out.plane + offset;
      if (together) {
        std::memcpy(to, lanes[0], static_cast<std::size_t>(count) * sizeof(float));
      } else {
        for (std::int64_t pixel = 0; pixel < count; pixel += kBlock) {
          for (int i = 0; i < used; ++i) to[pixel + i] = lanes[i][pixel];
        }
      }
    }
    clear_unused(out_, out, arguments.rows);
  }

 protected:
  struct Source {
    std::size_t input;
    std::int64_t channel;
  };

 private:
  virtual Source source_of(std::int64_t channel) const = 0;

  Extent out_;
};

class ChannelSlice final : public ChannelMovement {
 public:
  ChannelSlice(const Extent& out, std::int64_t start) : ChannelMovement(out), start_(start) {}

 private:
  Source source_of(std::int64_t channel) const override { return {0, start_ + channel}; }

  std::int64_t start_;
};

class ChannelConcat final : public ChannelMovement {
 public:
  // `starts`: the output's channel that is the first of each input.
  ChannelConcat(const Extent& out, std::vector<std::int64_t> starts)
      : ChannelMovement(out), starts_(std::move(starts)) {}

 private:
  Source source_of(std::int64_t channel) const override {
    const auto start = std::upper_bound(starts_.begin(), starts_.end(), channel) - 1;
    return {static_cast<std::size_t>(start - starts_.begin()), channel - *start};
  }

  std::vector<std::int64_t> starts_;
};

class ChannelShuffle final : public ChannelMovement {
 public:
  ChannelShuffle(const Extent& out, std::int64_t groups)
      : ChannelMovement(out), groups_(groups), group_size_(out.channels / groups) {}

 private:
  Source source_of(std::int64_t channel) const override {
    return {0, channel % groups_ * group_size_ + channel / groups_};
  }

  std::int64_t groups_, group_size_;
};

class Packing final : public Computation {
 public:
  explicit Packing(const Extent& extent) : extent_(extent) {}

  bool by_rows() const override { return true; }

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    const std::int64_t first = arguments.rows.first * extent_.width;
    const std::int64_t last = arguments.rows.last * extent_.width;
    for (std::int64_t block = 0; block < extent_.blocks(); ++block) {
      const std::int64_t used = std::min<std::int64_t>(kBlock, extent_.channels - block * kBlock);
      const float* from = in.data + block * kBlock * in.plane;
      float* to = out.data + block * out.plane;
      for (std::int64_t pixel = first; pixel < last; ++pixel) {
        for (std::int64_t i = 0; i < used; ++i) to[pixel * kBlock + i] = from[i * in.plane + pixel];
      }
    }
    clear_unused(extent_, out, arguments.rows);
  }

 private:
  Extent extent_;
};

// ---- pad: the input's first pixel is the output's at (top, left) ----

class Pad final : public Computation {
 public:
  Pad(const Extent& in, const Extent& out, std::int64_t top, std::int64_t left, float value)
      : in_(in), out_(out), top_(top), left_(left), value_(value) {}

  bool by_rows() const override { return true; }

  Rows needs(Rows rows) const override {
    const std::int64_t first = std::clamp<std::int64_t>(rows.first - top_, 0, in_.height);
    return {first, std::clamp<std::int64_t>(rows.last - top_, first, in_.height)};
  }

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    const std::int64_t right = (left_ + in_.width) * kBlock;
    for (std::int64_t block = 0; block < out_.blocks(); ++block) {
      for (std::int64_t y = arguments.rows.first; y < arguments.rows.last; ++y) {
        float* to = out.data + block * out.plane + y * out_.row();
        if (y < top_ || y >= top_ + in_.height) {
          std::fill_n(to, out_.row(), value_);
          continue;
        }
        std::fill_n(to, left_ * kBlock, value_);
        std::copy_n(in.data + block * in.plane + (y - top_) * in_.row(), in_.row(),
                    to + left_ * kBlock);
        std::fill(to + right, to + out_.row(), value_);
      }
    }
  }

 private:
  Extent in_, out_;
  std::int64_t top_, left_;
  float value_;
};

// ---- slice and concat along any other axis ----

// Copies a rectangle of `part`'s size, from where `in` is to where `out` is, in all blocks.
void copy_rectangle(const View& in, std::int64_t in_row, const View& out, std::int64_t out_row,
                    const Extent& part) {
  for (std::int64_t block = 0; block < part.blocks(); ++block) {
    for (std::int64_t y = 0; y < part.height; ++y) {
      std::copy_n(in.data + block * in.plane + y * in_row, part.row(),
                  out.data + block * out.plane + y * out_row);
    }
  }
}

class Slice final : public Computation {
 public:
  Slice(Shape in, Shape out, std::size_t axis, std::int64_t start)
      : in_(std::move(in)), out_(std::move(out)), axis_(axis), start_(start) {}

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    const Axes from = memory_axes(in_, in);
    const Extent extent = extent_of(out_);
    const View part = {in.data + from[axis_].at(start_), in.plane};
    if (in_blocks(in_)) {
      copy_rectangle(part, extent_of(in_).row(), out, extent.row(), extent);
    } else {
      walk<2>(out_, {from, memory_axes(out_, out)},
              [&](const At2& at) { out.data[at[1]] = part.data[at[0]]; });
    }
    clear_unused(extent, out, {0, extent.height});
  }

 private:
  Shape in_, out_;
  std::size_t axis_;
  std::int64_t start_;
};

class Concat final : public Computation {
 public:
  Concat(std::vector<Shape> inputs, Shape out, std::size_t axis)
      : inputs_(std::move(inputs)), out_(std::move(out)), axis_(axis) {}

  void run(const Arguments& arguments) const override {
    const View& out = arguments.output;
    const Axes to = memory_axes(out_, out);
    const Extent extent = extent_of(out_);
    std::int64_t start = 0;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      const Shape& shape = inputs_[i];
      const View& in = arguments.inputs[i];
      const View part = {out.data + to[axis_].at(start), out.plane};
      start += shape[axis_];
      if (in_blocks(out_)) {
        copy_rectangle(in, extent_of(shape).row(), part, extent.row(), extent_of(shape));
      } else {
        walk<2>(shape, {memory_axes(shape, in), to},
                [&](const At2& at) { part.data[at[1]] = in.data[at[0]]; });
      }
    }
    clear_unused(extent, out, {0, extent.height});
  }

 private:
  std::vector<Shape> inputs_;
  Shape out_;
  std::size_t axis_;
};

// ---- permute and reshape: any shapes ----

class Permute final : public Computation {
 public:
  Permute(Shape in, Shape out, const std::vector<std::int64_t>& order)
      : in_(std::move(in)), out_(std::move(out)), order_(order) {}

  void run(const Arguments& arguments) const override {
    const float* from = arguments.inputs[0].data;
    float* to = arguments.output.data;
    const Axes in = memory_axes(in_, arguments.inputs[0]);
    Axes ordered = {};
    for (std::size_t axis = 0; axis < order_.size(); ++axis) {
      ordered[axis] = in[static_cast<std::size_t>(order_[axis])];
    }
    walk<2>(out_, {ordered, memory_axes(out_, arguments.output)},
            [&](const At2& at) { to[at[1]] = from[at[0]]; });
    const Extent extent = extent_of(out_);
    clear_unused(extent, arguments.output, {0, extent.height});
  }

 private:
  Shape in_, out_;
  std::vector<std::int64_t> order_;
};

class Reshape final : public Computation {
 public:
  Reshape(Shape in, Shape out) : in_(std::move(in)), out_(std::move(out)) {}

  void run(const Arguments& arguments) const override {
    const View& in = arguments.inputs[0];
    const View& out = arguments.output;
    const Extent extent = extent_of(out_);
    if (!in_blocks(out_)) {
      // Dense: in the order of the input's elements, whatever the shape.
      walk<2>(in_, {memory_axes(in_, in), dense_axes(in_)},
              [&](const At2& at) { out.data[at[1]] = in.data[at[0]]; });
    } else if (!in_blocks(in_)) {
      walk<2>(out_, {dense_axes(out_), memory_axes(out_, out)},
              [&](const At2& at) { out.data[at[1]] = in.data[at[0]]; });
    } else {
      copy_blocks(in, out);
    }
    clear_unused(extent, out, {0, extent.height});
  }

 private:
  // From one image to another, the place in the input counted along.
  void copy_blocks(const View& in, const View& out) const {
    const std::int64_t pixels = in_[2] * in_[3];
    std::int64_t channel = 0, pixel = 0;
    walk<1>(out_, {memory_axes(out_, out)}, [&](const std::array<std::int64_t, 1>& at) {
      out.data[at[0]] = in.data[channel / kBlock * in.plane + pixel * kBlock + channel % kBlock];
      if (++pixel == pixels) {
        pixel = 0;
        ++channel;
      }
    });
  }

  Shape in_, out_;
};

}  // namespace

std::unique_ptr<Computation> prepare_packing(const Shape& shape) {
  return std::make_unique<Packing>(extent_of(shape));
}

std::unique_ptr<Computation> prepare_data_movement(const Operation& operation, const Graph& graph,
                                                   const Kernels& /*kernels*/) {
  const Node& node = *operation.node;
  const Shape& in = graph.values[operation.inputs[0]].shape;
  const Shape& out = graph.values[operation.output].shape;
  const Extent extent = extent_of(out);
  // [1, n] lies in memory as [1, n, 1, 1] does.
  const bool channels_in_blocks = (in.size() == 4 || in.size() == 2) && in[0] == 1;
  switch (node.op->kind) {
    case OpKind::kSlice: {
      const std::int64_t axis = integer(node, "axis");
      const std::int64_t start = integer(node, "start");
      if (channels_in_blocks && axis == 1) return std::make_unique<ChannelSlice>(extent, start);
      return std::make_unique<Slice>(in, out, static_cast<std::size_t>(axis), start);
    }
    case OpKind::kConcat: {
      const auto axis = static_cast<std::size_t>(integer(node, "axis"));
      std::vector<Shape> shapes;
      std::vector<std::int64_t> starts;
      std::int64_t start = 0;
      for (const std::size_t input : operation.inputs) {
        shapes.push_back(graph.values[input].shape);
        starts.push_back(start);
        start += shapes.back()[axis];
      }
      if (channels_in_blocks && axis == 1) {
        return std::make_unique<ChannelConcat>(extent, std::move(starts));
      }
      return std::make_unique<Concat>(std::move(shapes), out, axis);
    }
    case OpKind::kChannelShuffle:
      return std::make_unique<ChannelShuffle>(extent, integer(node, "groups"));
    case OpKind::kPad: {
      const auto& padding = integers(node, "padding");
      return std::make_unique<Pad>(extent_of(in), extent, padding[0], padding[1],
                                   number(node, "value"));
    }
    case OpKind::kPermute:
      return std::make_unique<Permute>(in, out, integers(node, "order"));
    case OpKind::kReshape:
      return std::make_unique<Reshape>(in, out);
    default:
      refuse(node, "the engine has no such operation");
  }
}

}  // namespace quern
