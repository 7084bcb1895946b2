// The way from decoded pixels to the network's input, step by step as torchvision does it on
// Pillow images; the settings travel in model_weights.bin.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "image/decode.h"

namespace quern {

// Either one number (resize: the shorter side, aspect kept; crop: a square) or exact [h, w].
struct Size {
  int height = 0;
  int width = 0;
  bool shorter_side = false;  // resize only: height == width == the shorter side's length
};

// The "preprocess" section of model_weights.bin. An absent step is left out.
struct Preprocess {
  ColorMode mode = ColorMode::kRgb;
  std::optional<Size> resize;
  std::optional<Size> crop;
  Interpolation interpolation = Interpolation::kBilinear;
  std::vector<float> mean;  // one per channel; mean and std are both empty to leave the step out
  std::vector<float> std;

  int channels() const { return channels_of(mode); }
};

// [height, width] of an image of that size after resize and crop.
std::array<std::int64_t, 2> preprocessed_size(const Preprocess& settings, int height, int width);

// Resize, centre crop (padded with 0 when the image is smaller), value/255, (x - mean) / std.
// `image` is uint8 [H, W, C] as decode() gives it for settings.mode. `output` is float32
// [1, C, height, width] (NCHW), written in full.
// Throws ImageError: 400 when the image does not come out as [height, width], 413 when resizing it
// would take too much memory.
void preprocess(const Image& image, const Preprocess& settings, int height, int width,
                std::span<float> output);

// Wall time in seconds; resize is all that preprocess() does.
struct PrepareTime {
  double decode = 0.0;
  double resize = 0.0;
};

// decode() and preprocess() of a file in one go, a few rows at a time: the same `output` in less
// time, and with memory for those rows only. Throws what these two throw; `output` is then
// unfinished.
PrepareTime prepare(std::span<const std::uint8_t> file, const Preprocess& settings, int height,
                    int width, std::span<float> output, std::size_t max_pixels = kDefaultMaxPixels);

}  // namespace quern
