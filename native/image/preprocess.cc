#include "image/preprocess.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "image/resize.h"
#include "image/row_reader.h"

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

// Which part of the resized image the crop keeps, and where in the output it begins.
struct Crop {
  Area kept;
  int top = 0, left = 0;
};

Crop center_crop(const Extent& resized, int height, int width) {
  const std::int64_t y = crop_start(resized.height, height);
  const std::int64_t x = crop_start(resized.width, width);
  Crop crop;
  crop.kept.top = static_cast<int>(std::max<std::int64_t>(y, 0));
  crop.kept.left = static_cast<int>(std::max<std::int64_t>(x, 0));
  crop.kept.bottom = static_cast<int>(std::min(y + height, resized.height));
  crop.kept.right = static_cast<int>(std::min(x + width, resized.width));
  crop.top = static_cast<int>(std::max<std::int64_t>(-y, 0));
  crop.left = static_cast<int>(std::max<std::int64_t>(-x, 0));
  return crop;
}

// The output, one finished row after the other.
class Planes {
 public:
  Planes(const Preprocess& settings, int height, int width, const Crop& crop,
         std::span<float> output)
      : height_(height), width_(width), crop_(crop), output_(output), y_(crop.top) {
    for (int channel = 0; channel < settings.channels(); ++channel) {
      values_.push_back(normalized_values(settings, static_cast<std::size_t>(channel)));
    }
    if (crop.kept.height() == height && crop.kept.width() == width) return;
    for (std::size_t channel = 0; channel < values_.size(); ++channel) {
      std::fill_n(row(channel, 0), static_cast<std::ptrdiff_t>(height) * width,
                  values_[channel][0]);
    }
  }

  // uint8 [crop.kept.width(), channels].
  void add(const std::uint8_t* pixels) {
    const auto count = static_cast<std::size_t>(crop_.kept.width());
    if (values_.size() == 1) {
      float* const gray = row(0, y_) + crop_.left;
      for (std::size_t x = 0; x < count; ++x) gray[x] = values_[0][pixels[x]];
    } else {
      float* const red = row(0, y_) + crop_.left;
      float* const green = row(1, y_) + crop_.left;
      float* const blue = row(2, y_) + crop_.left;
      for (std::size_t x = 0; x < count; ++x, pixels += 3) {
        red[x] = values_[0][pixels[0]];
        green[x] = values_[1][pixels[1]];
        blue[x] = values_[2][pixels[2]];
      }
    }
    ++y_;
  }

 private:
  float* row(std::size_t channel, int y) {
    return output_.data() +
           (channel * static_cast<std::size_t>(height_) + static_cast<std::size_t>(y)) *
               static_cast<std::size_t>(width_);
  }

  int height_, width_;
  Crop crop_;
  std::vector<std::array<float, 256>> values_;  // by channel
  std::span<float> output_;
  int y_;  // the next row
};

// An image in memory.
class ImageRows : public RowReader {
 public:
  explicit ImageRows(const Image& image) : image_(image) {}

  int height() const override { return image_.height; }
  int width() const override { return image_.width; }

  Area start(const Area& wanted) override {
    y_ = wanted.top;
    area_ = wanted;
    return wanted;
  }

  void read(int count, std::uint8_t* out, std::size_t stride) override {
    for (; count > 0; --count, ++y_, out += stride) {
      std::copy_n(image_.row(y_) + area_.left * image_.channels, area_.width() * image_.channels,
                  out);
    }
  }

  void finish() override {}

 private:
  const Image& image_;
  Area area_;
  int y_ = 0;
};

using Clock = std::chrono::steady_clock;

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// Adds to `time`.
void prepare_rows(RowReader& reader, const Preprocess& settings, int height, int width,
                  std::span<float> output, PrepareTime& time) {
  Clock::time_point then = Clock::now();
  const auto lap = [&then](double& total) {
    const Clock::time_point now = Clock::now();
    total += seconds(now - then);
    then = now;
  };

  const std::array<std::int64_t, 2> size =
      preprocessed_size(settings, reader.height(), reader.width());
  if (size != std::array<std::int64_t, 2>{height, width}) {
    throw ImageError(400, "the image of " + std::to_string(reader.width()) + "x" +
                              std::to_string(reader.height()) + " pixels comes out as " +
                              std::to_string(size[1]) + "x" + std::to_string(size[0]) +
                              ", the model takes " + std::to_string(width) + "x" +
                              std::to_string(height));
  }
  const int channels = settings.channels();
  if (output.size() != static_cast<std::size_t>(channels) * static_cast<std::size_t>(height) *
                           static_cast<std::size_t>(width)) {
    throw std::invalid_argument("preprocess: the output's size is wrong");
  }

  Extent extent = {reader.height(), reader.width()};
  if (settings.resize) extent = resized(*settings.resize, extent.height, extent.width);
  const Crop crop = center_crop(extent, height, width);
  RowResizer resizer(reader.height(), reader.width(), channels,
                     static_cast<int>(std::min<std::int64_t>(extent.height, kMaxSide + 1)),
                     static_cast<int>(std::min<std::int64_t>(extent.width, kMaxSide + 1)),
                     settings.interpolation, crop.kept);
  Planes planes(settings, height, width, crop, output);
  lap(time.resize);

  const Area source = resizer.source();
  const Area read = reader.start(source);
  RowBuffer rows(RowResizer::kMaxRows, static_cast<std::size_t>(read.width() * channels), kSlack);
  const std::uint8_t* const first = rows.data() + (source.left - read.left) * channels;
  for (int y = source.top; y < source.bottom; y += RowResizer::kMaxRows) {
    const int count = std::min(RowResizer::kMaxRows, source.bottom - y);
    reader.read(count, rows.data(), rows.stride());
    lap(time.decode);
    resizer.push(first, rows.stride(), count);
    while (const std::uint8_t* row = resizer.next()) planes.add(row);
    lap(time.resize);
  }
  reader.finish();
  lap(time.decode);
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
  if (image.channels != settings.channels()) {
    throw std::invalid_argument("preprocess: the image's mode is wrong");
  }
  ImageRows reader(image);
  PrepareTime time;
  prepare_rows(reader, settings, height, width, output, time);
}

PrepareTime prepare(std::span<const std::uint8_t> file, const Preprocess& settings, int height,
                    int width, std::span<float> output, std::size_t max_pixels) {
  PrepareTime time;
  const Clock::time_point start = Clock::now();
  const std::unique_ptr<RowReader> reader = open_image(file, settings.mode, max_pixels);
  time.decode = seconds(Clock::now() - start);
  prepare_rows(*reader, settings, height, width, output, time);
  return time;
}

}  // namespace quern
