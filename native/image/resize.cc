#include "image/resize.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace quern {
namespace {

// 8 bits for the result, 2 for the filter's overshoot: what is left of 32 is the fraction.
constexpr int kPrecisionBits = 32 - 8 - 2;

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

// The input pixels one output pixel is made of, and their fixed-point weights.
struct Window {
  int first = 0, count = 0;
  std::size_t weights = 0;  // index of the first
};

struct Coefficients {
  std::vector<Window> windows;  // by output pixel
  std::vector<std::int32_t> weights;
};

// Resample.c: precompute_coeffs and normalize_coeffs_8bpc, the same operations in the same order.
Coefficients coefficients(int in, int out, const Filter& filter) {
  const double scale = static_cast<double>(in) / out;
  const double filter_scale = std::max(scale, 1.0);
  const double support = filter.support * filter_scale;
  const double inverse = 1.0 / filter_scale;
  Coefficients result;
  std::vector<double> weights;
  for (int x = 0; x < out; ++x) {
    const double center = (x + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int last = std::min(static_cast<int>(center + support + 0.5), in);
    weights.clear();
    double sum = 0.0;
    for (int i = first; i < last; ++i) {
      weights.push_back(filter.weight((i - center + 0.5) * inverse));
      sum += weights.back();
    }
    result.windows.push_back({first, last - first, result.weights.size()});
    for (double weight : weights) {
      if (sum != 0.0) weight /= sum;
      const double fixed = weight * (1 << kPrecisionBits);
      result.weights.push_back(static_cast<std::int32_t>(weight < 0 ? fixed - 0.5 : fixed + 0.5));
    }
  }
  return result;
}

std::uint8_t clip(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

constexpr std::int32_t kHalf = 1 << (kPrecisionBits - 1);

template <int kChannels>
void horizontal_row(const std::uint8_t* in, const Coefficients& c, std::uint8_t* out) {
  for (const Window& window : c.windows) {
    const std::int32_t* weights = c.weights.data() + window.weights;
    const std::uint8_t* pixels = in + static_cast<std::ptrdiff_t>(window.first) * kChannels;
    std::int32_t sums[kChannels];
    std::fill_n(sums, kChannels, kHalf);
    for (int i = 0; i < window.count; ++i) {
      for (int k = 0; k < kChannels; ++k) sums[k] += pixels[i * kChannels + k] * weights[i];
    }
    for (int k = 0; k < kChannels; ++k) *out++ = clip(sums[k]);
  }
}

Image blank(int height, int width, int channels) {
  Image image;
  image.height = height;
  image.width = width;
  image.channels = channels;
  image.pixels.resize(image.row_bytes() * static_cast<std::size_t>(height));
  return image;
}

Image horizontal(const Image& image, int width, const Filter& filter) {
  const Coefficients c = coefficients(image.width, width, filter);
  Image out = blank(image.height, width, image.channels);
  for (int y = 0; y < out.height; ++y) {
    if (image.channels == 1) {
      horizontal_row<1>(image.row(y), c, out.row(y));
    } else {
      horizontal_row<3>(image.row(y), c, out.row(y));
    }
  }
  return out;
}

Image vertical(const Image& image, int height, const Filter& filter) {
  const Coefficients c = coefficients(image.height, height, filter);
  Image out = blank(height, image.width, image.channels);
  std::vector<std::int32_t> sums(image.row_bytes());
  for (int y = 0; y < height; ++y) {
    const Window& window = c.windows[static_cast<std::size_t>(y)];
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int i = 0; i < window.count; ++i) {
      const std::uint8_t* in = image.row(window.first + i);
      const std::int32_t weight = c.weights[window.weights + static_cast<std::size_t>(i)];
      for (std::size_t x = 0; x < sums.size(); ++x) sums[x] += in[x] * weight;
    }
    std::transform(sums.begin(), sums.end(), out.row(y), clip);
  }
  return out;
}

// Where each output pixel's centre falls. Geometry.c adds the step up instead of multiplying, and
// the rounding of that sum decides ties.
std::vector<int> nearest_positions(int in, int out) {
  const double step = static_cast<double>(in) / out;
  double position = step * 0.5;
  std::vector<int> positions;
  for (int i = 0; i < out; ++i, position += step) {
    positions.push_back(std::min(static_cast<int>(position), in - 1));
  }
  return positions;
}

Image nearest(const Image& image, int height, int width) {
  const std::vector<int> xs = nearest_positions(image.width, width);
  const std::vector<int> ys = nearest_positions(image.height, height);
  Image out = blank(height, width, image.channels);
  std::uint8_t* pixel = out.pixels.data();
  const auto channels = static_cast<std::size_t>(image.channels);
  for (const int y : ys) {
    const std::uint8_t* row = image.row(y);
    for (const int x : xs) {
      pixel = std::copy_n(row + static_cast<std::size_t>(x) * channels, channels, pixel);
    }
  }
  return out;
}

}  // namespace

Image resize(const Image& image, int height, int width, Interpolation interpolation) {
  if (height < 1 || width < 1 || image.height < 1 || image.width < 1 ||
      (image.channels != 1 && image.channels != 3)) {
    throw std::invalid_argument("resize: sizes must be at least 1, channels 1 or 3");
  }
  if (std::max({height, width, image.height, image.width}) > kMaxSide ||
      static_cast<std::int64_t>(height) * width > kMaxResizedPixels ||
      static_cast<std::int64_t>(image.height) * width > kMaxResizedPixels) {
    throw ImageError(413, "the image of " + std::to_string(image.width) + "x" +
                              std::to_string(image.height) + " pixels is too narrow to be resized" +
                              " to " + std::to_string(width) + "x" + std::to_string(height));
  }
  if (height == image.height && width == image.width) return image;
  if (interpolation == Interpolation::kNearest) return nearest(image, height, width);
  const Filter filter =
      interpolation == Interpolation::kBilinear ? Filter{triangle, 1.0} : Filter{cubic, 2.0};
  if (width == image.width) return vertical(image, height, filter);
  Image narrowed = horizontal(image, width, filter);
  return height == image.height ? narrowed : vertical(narrowed, height, filter);
}

}  // namespace quern
