// libFuzzer target: the bytes of an image, through decoding to both modes and through
// preprocessing. The last kSettingsBytes bytes of an input say how to preprocess; what is before
// them is the file, so that the corpus is of images that any program shows.
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "fuzz/finding.h"
#include "image/decode.h"
#include "image/preprocess.h"

using namespace quern;
using fuzz::finding;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

constexpr std::size_t kMaxPixels = 1 << 18;
constexpr std::size_t kSettingsBytes = 8;
constexpr std::size_t kPngSignatureBytes = 8;

// Throws ImageError only, with a sentence and one of the three statuses.
void check_refusal(const ImageError& error) {
  fuzz::check_sentence(error.what());
  if (error.status() != 400 && error.status() != 413 && error.status() != 415) {
    finding("an image was refused with status " + std::to_string(error.status()));
  }
}

// byte 0: mode, interpolation, which steps there are; the others: sizes from 1 to 256, the input's
// shape as the loader would accept it (weights_file.cc, check_preprocess).
struct Settings {
  Preprocess preprocess;
  int height, width;
};

Settings settings_of(std::span<const std::uint8_t> bytes, ColorMode mode) {
  const std::uint8_t flags = bytes[0];
  const auto side = [&](std::size_t i) { return 1 + bytes[i]; };
  Settings settings;
  Preprocess& p = settings.preprocess;
  p.mode = mode;
  p.interpolation = static_cast<Interpolation>(bytes[1] % 3);
  if ((flags & 1U) != 0) {
    const bool shorter = (flags & 2U) != 0;
    p.resize = Size{side(2), shorter ? side(2) : side(3), shorter};
  }
  if ((flags & 4U) != 0) p.crop = Size{side(4), side(5), false};
  if ((flags & 8U) != 0) {
    const auto channels = static_cast<std::size_t>(p.channels());
    p.mean.assign(channels, static_cast<float>(bytes[6]) / 255.0F);
    p.std.assign(channels, bytes[7] == 0 ? 1e-6F : static_cast<float>(bytes[7]) / 255.0F);
  }
  settings.height = side(2);
  settings.width = side(3);
  if (p.crop) {
    settings.height = p.crop->height;
    settings.width = p.crop->width;
  } else if (p.resize && p.resize->shorter_side) {
    settings.height = std::max(p.resize->height, side(4));
    settings.width = p.resize->height;
  }
  return settings;
}

// What one of the two ways made of a file: the network's input, or the status of its refusal.
struct Outcome {
  int status = 0;
  std::vector<float> output;
};

template <typename Way>
Outcome outcome_of(const Settings& settings, Way way) {
  const auto channels = static_cast<std::size_t>(settings.preprocess.channels());
  Outcome outcome;
  outcome.output.assign(channels * static_cast<std::size_t>(settings.height) *
                            static_cast<std::size_t>(settings.width),
                        NAN);
  try {
    way(outcome.output);
  } catch (const ImageError& error) {
    check_refusal(error);
    return {error.status(), {}};
  }
  const auto finite = [](float x) { return std::isfinite(x); };
  if (!std::all_of(outcome.output.begin(), outcome.output.end(), finite)) {
    finding("a preprocessed pixel is not a finite number");
  }
  return outcome;
}

// The server's way, with memory for a few rows only, must give the plain one's numbers; it may find
// another of two reasons for a refusal first.
void try_prepare(std::span<const std::uint8_t> file, const Settings& settings,
                 const Outcome& plain) {
  const Outcome prepared = outcome_of(settings, [&](std::span<float> output) {
    prepare(file, settings.preprocess, settings.height, settings.width, output, kMaxPixels);
  });
  if ((prepared.status == 0) != (plain.status == 0)) {
    finding("prepare() ends with status " + std::to_string(prepared.status) +
            ", decode() and preprocess() with " + std::to_string(plain.status));
  }
  if (prepared.output != plain.output) finding("prepare() gives other numbers than preprocess()");
}

// Height and width, {0, 0} when the image is refused.
std::array<int, 2> try_image(std::span<const std::uint8_t> file,
                             std::span<const std::uint8_t> settings_bytes, ColorMode mode) {
  const Settings settings = settings_of(settings_bytes, mode);
  Image image;
  try {
    image = decode(file, mode, kMaxPixels);
  } catch (const ImageError& error) {
    check_refusal(error);
    try_prepare(file, settings, {error.status(), {}});
    return {0, 0};
  }
  const std::size_t bytes = image.row_bytes() * static_cast<std::size_t>(image.height);
  if (image.height < 1 || image.width < 1 || image.pixels.size() != bytes) {
    finding("an image was decoded whose size is not that of its pixels");
  }
  if (bytes / static_cast<std::size_t>(image.channels) > kMaxPixels) {
    finding("an image was decoded that has more pixels than are allowed");
  }
  const Outcome plain = outcome_of(settings, [&](std::span<float> output) {
    preprocess(image, settings.preprocess, settings.height, settings.width, output);
  });
  try_prepare(file, settings, plain);
  return {image.height, image.width};
}

// Puts right the checksum of every chunk, so that damage is not noticed by it alone.
void put_right_checksums(std::span<std::uint8_t> png) {
  const auto number = [&](std::size_t at) {
    return std::uint32_t{png[at]} << 24U | std::uint32_t{png[at + 1]} << 16U |
           std::uint32_t{png[at + 2]} << 8U | png[at + 3];
  };
  for (std::size_t at = kPngSignatureBytes; png.size() - at >= 12;) {
    const std::size_t length = number(at);
    if (length > png.size() - at - 12) return;
    const auto checksum =
        static_cast<std::uint32_t>(crc32(0, png.data() + at + 4, static_cast<uInt>(length + 4)));
    for (std::size_t i = 0; i < 4; ++i) {
      png[at + 8 + length + i] = static_cast<std::uint8_t>(checksum >> (24 - 8 * i));
    }
    at += 12 + length;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < kSettingsBytes) return 0;
  const std::span<const std::uint8_t> input(data, size);
  const auto file = input.first(size - kSettingsBytes);
  const auto settings = input.last(kSettingsBytes);
  if (try_image(file, settings, ColorMode::kRgb) != try_image(file, settings, ColorMode::kL)) {
    finding("the mode decides whether an image is decoded, or its size");
  }
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  size = LLVMFuzzerMutate(data, size, most);
  const bool png = size > kPngSignatureBytes && std::memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0;
  if (png && seed % 4 != 0) put_right_checksums({data, size});
  return size;
}
