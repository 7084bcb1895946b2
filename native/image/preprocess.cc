#include "image/preprocess.h"

#include <algorithm>
#include <cmath>

#include "image/resize.h"

namespace quern {
namespace {

struct Extent {
  std::int64_t height, width;
};

// torchvision's _compute_resized_output_size.
Extent resized(const Size& size, std::int64_t height, std::int64_t width) {
  if (!size.shorter_side) return {size.height, size.width};
  const std::int64_t shorter = std::min(height, width);
  const std::int64_t longer = std::max(height, width);
  const auto scaled = static_cast<std::int64_t>(static_cast<double>(size.height * longer) /
                                                static_cast<double>(shorter));
  return width <= height ? Extent{scaled, size.height} : Extent{size.height, scaled};
}

// Where the crop begins on one axis; negative: so many zeros stand before the image.
// torchvision's center_crop: pads to the crop's size first, then rounds half to even as Python.
std::int64_t crop_start(std::int64_t in, std::int64_t out) {
  if (out > in) return -((out - in) / 2);
  const std::int64_t both = in - out;
  const std::int64_t half = both / 2;
  return both % 2 == 1 && half % 2 == 1 ? half + 1 : half;
}

Image center_crop(const Image& image, int height, int width) {
  Image out;
  out.height = height;
  out.width = width;
  out.channels = image.channels;
  out.pixels.resize(out.row_bytes() * static_cast<std::size_t>(height));  // zeros
  const std::int64_t top = crop_start(image.height, height);
  const std::int64_t left = crop_start(image.width, width);
  const auto channels = static_cast<std::int64_t>(image.channels);
  const std::int64_t first = std::max<std::int64_t>(left, 0);
  const std::int64_t last = std::min<std::int64_t>(left + width, image.width);
  for (int y = 0; y < height; ++y) {
    const std::int64_t in_y = y + top;
    if (in_y < 0 || in_y >= image.height) continue;
    const std::uint8_t* row = image.row(static_cast<int>(in_y));
    std::copy(row + first * channels, row + last * channels,
              out.row(y) + (first - left) * channels);
  }
  return out;
}

// The 256 values a channel can have: torch's float32 steps, one after the other.
std::array<float, 256> normalized_values(const Preprocess& settings, std::size_t channel) {
  std::array<float, 256> values = {};
  for (std::size_t i = 0; i < values.size(); ++i) {
    float value = static_cast<float>(i) / 255.0F;
    if (!settings.mean.empty()) {
      value = (value - settings.mean[channel]) / settings.std[channel];
    }
    values[i] = value;
  }
  return values;
}

}  // namespace

std::array<std::int64_t, 2> preprocessed_size(const Preprocess& settings, int height, int width) {
  Extent extent = {height, width};
  if (settings.resize) extent = resized(*settings.resize, extent.height, extent.width);
  if (settings.crop) extent = {settings.crop->height, settings.crop->width};
  return {extent.height, extent.width};
}

void preprocess(const Image& image, const Preprocess& settings, int height, int width,
                std::span<float> output) {
  const std::array<std::int64_t, 2> size = preprocessed_size(settings, image.height, image.width);
  if (size != std::array<std::int64_t, 2>{height, width}) {
    throw ImageError(
        400, "the image of " + std::to_string(image.width) + "x" + std::to_string(image.height) +
                 " pixels comes out as " + std::to_string(size[1]) + "x" + std::to_string(size[0]) +
                 ", the model takes " + std::to_string(width) + "x" + std::to_string(height));
  }
  const auto channels = static_cast<std::size_t>(settings.channels());
  const std::size_t plane = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  if (image.channels != settings.channels() || output.size() != channels * plane) {
    throw std::invalid_argument("preprocess: the image's mode or the output's size is wrong");
  }

  Image changed;
  const Image* pixels = &image;
  if (settings.resize) {
    const Extent extent = resized(*settings.resize, image.height, image.width);
    changed = resize(image, static_cast<int>(std::min<std::int64_t>(extent.height, kMaxSide + 1)),
                     static_cast<int>(std::min<std::int64_t>(extent.width, kMaxSide + 1)),
                     settings.interpolation);
    pixels = &changed;
  }
  if (settings.crop) {
    changed = center_crop(*pixels, height, width);
    pixels = &changed;
  }
  for (std::size_t channel = 0; channel < channels; ++channel) {
    const std::array<float, 256> values = normalized_values(settings, channel);
    const std::uint8_t* in = pixels->pixels.data() + channel;
    float* out = output.data() + channel * plane;
    for (std::size_t i = 0; i < plane; ++i) out[i] = values[in[i * channels]];
  }
}

}  // namespace quern
