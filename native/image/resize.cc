#include "image/resize.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace quern {
namespace {

double triangle(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

// Keys' cubic convolution with a = -0.5.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

struct Filter {
  double (*weight)(double);
  double support;
};

void append(const std::vector<std::int32_t>& weights, Axis& axis) {
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (i % 4 == 0) axis.weights.push_back({});
    axis.weights.back().low[i % 4] = static_cast<std::int16_t>(weights[i] & ((1 << kLowBits) - 1));
    axis.weights.back().high[i % 4] = static_cast<std::int16_t>(weights[i] >> kLowBits);
  }
}

// Resample.c: precompute_coeffs and normalize_coeffs_8bpc, the same operations in the same order.
Axis filtered(int in, int out, int begin, int end, const Filter& filter) {
  const double scale = static_cast<double>(in) / out;
  const double filter_scale = std::max(scale, 1.0);
  const double support = filter.support * filter_scale;
  const double inverse = 1.0 / filter_scale;
  Axis axis;
  std::vector<double> weights;
  std::vector<std::int32_t> fixed_weights;
  for (int x = begin; x < end; ++x) {
    const double center = (x + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int last = std::min(static_cast<int>(center + support + 0.5), in);
    weights.clear();
    double sum = 0.0;
    for (int i = first; i < last; ++i) {
      weights.push_back(filter.weight((i - center + 0.5) * inverse));
      sum += weights.back();
    }
    fixed_weights.clear();
    for (double weight : weights) {
      if (sum != 0.0) weight /= sum;
      const double fixed = weight * (1 << kPrecisionBits);
      fixed_weights.push_back(static_cast<std::int32_t>(weight < 0 ? fixed - 0.5 : fixed + 0.5));
    }
    axis.windows.push_back({first, last - first, static_cast<int>(axis.weights.size())});
    append(fixed_weights, axis);
  }
  return axis;
}

// Where each output pixel's centre falls. Geometry.c adds the step up instead of multiplying, and
// the rounding of that sum decides ties.
Axis nearest(int in, int out, int begin, int end) {
  const double step = static_cast<double>(in) / out;
  double position = step * 0.5;
  Axis axis;
  for (int x = 0; x < end; ++x, position += step) {
    if (x >= begin) axis.windows.push_back({std::min(static_cast<int>(position), in - 1), 1, 0});
  }
  return axis;
}

// Output pixels [begin, end) of `out`; windows count from `first`.
Axis axis_of(int in, int out, int begin, int end, Interpolation interpolation) {
  Axis axis;
  if (in == out || interpolation == Interpolation::kNearest) {
    axis = nearest(in, out, begin, end);
  } else if (interpolation == Interpolation::kBilinear) {
    axis = filtered(in, out, begin, end, {triangle, 1.0});
  } else {
    axis = filtered(in, out, begin, end, {cubic, 2.0});
  }
  axis.first = axis.windows.front().first;
  axis.last = axis.windows.back().first + axis.windows.back().count;
  for (Window& window : axis.windows) window.first -= axis.first;
  return axis;
}

template <int kChannels>
void copy_pixels(const std::uint8_t* in, const std::vector<Window>& windows, std::uint8_t* out) {
  for (const Window& window : windows) {
    const std::uint8_t* pixel = in + static_cast<std::ptrdiff_t>(window.first) * kChannels;
    for (int k = 0; k < kChannels; ++k) *out++ = *pixel++;  // copy_n() calls a function for each
  }
}

void check_sizes(int height, int width, int channels, int new_height, int new_width) {
  if (std::min({height, width, new_height, new_width}) < 1 || (channels != 1 && channels != 3)) {
    throw std::invalid_argument("resize: sizes must be at least 1, channels 1 or 3");
  }
  if (std::max({height, width, new_height, new_width}) > kMaxSide ||
      static_cast<std::int64_t>(new_height) * new_width > kMaxResizedPixels ||
      static_cast<std::int64_t>(height) * new_width > kMaxResizedPixels) {
    throw ImageError(413, "the image of " + std::to_string(width) + "x" + std::to_string(height) +
                              " pixels is too narrow to be resized to " +
                              std::to_string(new_width) + "x" + std::to_string(new_height));
  }
}

}  // namespace

Image resize(const Image& image, int height, int width, Interpolation interpolation) {
  RowResizer resizer(image.height, image.width, image.channels, height, width, interpolation,
                     {0, height, 0, width});
  Image out;
  out.height = height;
  out.width = width;
  out.channels = image.channels;
  out.pixels.resize(out.row_bytes() * static_cast<std::size_t>(height));
  const Area source = resizer.source();
  std::vector<std::uint8_t> rows(image.row_bytes() * RowResizer::kMaxRows + kSlack);
  int made = 0;
  for (int y = source.top; y < source.bottom; y += RowResizer::kMaxRows) {
    const int count = std::min(RowResizer::kMaxRows, source.bottom - y);
    std::copy_n(image.row(y), image.row_bytes() * static_cast<std::size_t>(count), rows.data());
    resizer.push(rows.data() + source.left * image.channels, image.row_bytes(), count);
    while (const std::uint8_t* row = resizer.next()) {
      std::copy_n(row, out.row_bytes(), out.row(made++));
    }
  }
  return out;
}

RowResizer::RowResizer(int height, int width, int channels, int new_height, int new_width,
                       Interpolation interpolation, const Area& wanted,
                       const ResizeKernels& kernels)
    : kernels_(kernels), channels_(channels), row_bytes_(wanted.width() * channels) {
  check_sizes(height, width, channels, new_height, new_width);
  columns_ = axis_of(width, new_width, wanted.left, wanted.right, interpolation);
  rows_ = axis_of(height, new_height, wanted.top, wanted.bottom, interpolation);
  int tallest = 0;
  for (const Window& window : rows_.windows) tallest = std::max(tallest, window.count);
  capacity_ = tallest - 1 + kMaxRows;
  stride_ = static_cast<std::size_t>(row_bytes_ + kSlack);
  narrowed_.resize(stride_ * static_cast<std::size_t>(capacity_));
  finished_.resize(stride_);
  window_rows_.resize(static_cast<std::size_t>(tallest + 3));
}

Area RowResizer::source() const { return {rows_.first, rows_.last, columns_.first, columns_.last}; }

void RowResizer::push(const std::uint8_t* rows, std::size_t stride, int count) {
  for (int y = 0; y < count; y += kRowsTogether) {
    const std::uint8_t* in[kRowsTogether];
    std::uint8_t* out[kRowsTogether];
    for (int i = 0; i < kRowsTogether; ++i) {
      const int row = std::min(y + i, count - 1);  // the last one again where there are too few
      in[i] = rows + static_cast<std::size_t>(row) * stride;
      out[i] = narrowed(pushed_ + row);
    }
    if (!columns_.weights.empty()) {
      kernels_.horizontal(in, channels_, columns_.windows.data(),
                          static_cast<int>(columns_.windows.size()), columns_.weights.data(), out);
      continue;
    }
    for (int i = 0; i < kRowsTogether; ++i) {
      if (channels_ == 1) {
        copy_pixels<1>(in[i], columns_.windows, out[i]);
      } else {
        copy_pixels<3>(in[i], columns_.windows, out[i]);
      }
    }
  }
  pushed_ += count;
}

const std::uint8_t* RowResizer::next() {
  if (static_cast<std::size_t>(made_) == rows_.windows.size()) return nullptr;
  const Window& window = rows_.windows[static_cast<std::size_t>(made_)];
  if (window.first + window.count > pushed_) return nullptr;
  ++made_;
  if (rows_.weights.empty()) return narrowed(window.first);
  const int groups = (window.count + 3) / 4;
  for (int i = 0; i < 4 * groups; ++i) {
    // A weight of 0 takes any row.
    window_rows_[static_cast<std::size_t>(i)] =
        narrowed(window.first + std::min(i, window.count - 1));
  }
  kernels_.vertical(window_rows_.data(), rows_.weights.data() + window.weights, groups, row_bytes_,
                    finished_.data());
  return finished_.data();
}

}  // namespace quern
