// prepare() reads no more of a file than it needs, and a few rows at a time; that must not show.
#include <doctest/doctest.h>

#include <random>
#include <vector>

#include "image/decode.h"
#include "image/preprocess.h"
#include "image_files.h"

using namespace quern;

namespace {

// The status and the output of one of the two ways.
struct Outcome {
  int status = 200;
  std::vector<float> output;
  bool operator==(const Outcome&) const = default;
};

template <typename Prepare>
Outcome outcome(const Preprocess& settings, const Prepare& way) {
  const int height = settings.crop->height, width = settings.crop->width;
  Outcome result;
  result.output.resize(static_cast<std::size_t>(settings.channels() * height * width), -1.0F);
  try {
    way(height, width, result.output);
  } catch (const ImageError& error) {
    return {error.status(), {}};
  }
  return result;
}

Outcome in_one_go(const Bytes& file, const Preprocess& settings) {
  return outcome(settings, [&](int height, int width, std::span<float> output) {
    prepare(file, settings, height, width, output, 1'000'000);
  });
}

Outcome in_two_steps(const Bytes& file, const Preprocess& settings) {
  return outcome(settings, [&](int height, int width, std::span<float> output) {
    preprocess(decode(file, settings.mode, 1'000'000), settings, height, width, output);
  });
}

Preprocess crop(int height, int width, ColorMode mode = ColorMode::kRgb) {
  Preprocess settings;
  settings.mode = mode;
  settings.crop = Size{height, width, false};
  return settings;
}

int between(std::mt19937& random, int least, int most) {
  return std::uniform_int_distribution<int>(least, most)(random);
}

// Any crop, with any resize before it or none.
Preprocess any_settings(std::mt19937& random, int height, int width) {
  Preprocess settings = crop(between(random, 1, height + 9), between(random, 1, width + 9),
                             random() % 2 == 0 ? ColorMode::kRgb : ColorMode::kL);
  if (random() % 2 == 0) {
    settings.resize = Size{between(random, 1, 2 * height), between(random, 1, 2 * width), false};
  }
  settings.interpolation = static_cast<Interpolation>(random() % 3);
  return settings;
}

struct Sampling {
  int horizontal, vertical;
};

std::vector<JpegOptions> kinds_of_jpeg() {
  std::vector<JpegOptions> kinds;
  for (const Sampling sampling : {Sampling{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {4, 2}, {1, 4}}) {
    for (const bool progressive : {false, true}) {
      for (const unsigned restart_interval : {0U, 3U}) {
        kinds.push_back({JCS_RGB, sampling.horizontal, sampling.vertical, progressive, false,
                         restart_interval});
      }
    }
    kinds.push_back({JCS_RGB, sampling.horizontal, sampling.vertical, false, true, 0});
    if (sampling.horizontal * sampling.vertical < 8) {  // more than JPEG allows with four
      kinds.push_back({JCS_CMYK, sampling.horizontal, sampling.vertical, false, false, 0});
    }
    kinds.push_back({JCS_GRAYSCALE, sampling.horizontal, sampling.vertical, false, false, 0});
  }
  return kinds;
}

}  // namespace

TEST_CASE("the part that is wanted of a JPEG is as in the whole image") {
  std::mt19937 random(1);  // fixed: a failure can be repeated
  for (const JpegOptions& options : kinds_of_jpeg()) {
    CAPTURE(options.colors);
    CAPTURE(options.horizontal);
    CAPTURE(options.vertical);
    CAPTURE(options.progressive);
    CAPTURE(options.arithmetic);
    CAPTURE(options.restart_interval);
    for (int round = 0; round < 6; ++round) {
      const int width = between(random, 1, 300), height = between(random, 1, 200);
      const Bytes file = jpeg(width, height, options);
      for (int i = 0; i < 8; ++i) {
        const Preprocess settings = any_settings(random, height, width);
        const Outcome wanted = in_two_steps(file, settings);
        REQUIRE(wanted.status == 200);
        REQUIRE(in_one_go(file, settings) == wanted);
      }
    }
  }
}

TEST_CASE("every row at which a JPEG's part can begin and end") {
  for (const Sampling sampling : {Sampling{1, 1}, {1, 2}, {2, 2}}) {
    JpegOptions options;
    options.horizontal = sampling.horizontal;
    options.vertical = sampling.vertical;
    for (const int image_height : {70, 71}) {
      const Bytes file = jpeg(90, image_height, options);
      for (int height = 1; height <= image_height; ++height) {
        const Preprocess settings = crop(height, 20);
        REQUIRE(in_one_go(file, settings) == in_two_steps(file, settings));
      }
    }
  }
}

TEST_CASE("the part that is wanted of a PNG is as in the whole image") {
  std::mt19937 random(2);
  for (int round = 0; round < 50; ++round) {
    const int width = between(random, 1, 60), height = between(random, 1, 60);
    Bytes rows;
    for (int y = 0; y < height; ++y) {
      rows.push_back(static_cast<std::uint8_t>(random() % 5));  // the filter
      for (int x = 0; x < 3 * width; ++x) rows.push_back(static_cast<std::uint8_t>(random()));
    }
    const Bytes file =
        png(static_cast<std::size_t>(width), static_cast<std::size_t>(height), 8, 2, rows);
    const Preprocess settings = any_settings(random, height, width);
    REQUIRE(in_one_go(file, settings) == in_two_steps(file, settings));
  }
  const Bytes interlaced = png(2, 2, 8, 2, {0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12}, 1);
  REQUIRE(in_two_steps(interlaced, crop(1, 2)).status == 200);
  CHECK(in_one_go(interlaced, crop(1, 2)) == in_two_steps(interlaced, crop(1, 2)));
}

TEST_CASE("damage is refused wherever it is, whatever part is wanted") {
  std::mt19937 random(3);
  JpegOptions restarts;
  restarts.restart_interval = 2;
  JpegOptions arithmetic;
  arithmetic.arithmetic = true;
  for (const Bytes& file : {small_png(), jpeg(90, 70), jpeg(90, 70, restarts),
                            jpeg(90, 70, arithmetic), progressive_jpeg(90, 70)}) {
    for (const Preprocess& settings : {crop(1, 1), crop(9, 30)}) {
      REQUIRE(in_one_go(file, settings).status == 200);
      for (std::size_t n = 0; n < file.size(); n += 1 + file.size() / 400) {
        const Bytes cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n));
        REQUIRE(in_one_go(cut, settings).status >= 400);
      }
      for (int round = 0; round < 700; ++round) {
        Bytes damaged = file;
        for (unsigned count = 1 + random() % 3; count > 0; --count) {
          damaged[random() % damaged.size()] = static_cast<std::uint8_t>(random());
        }
        REQUIRE(in_one_go(damaged, settings) == in_two_steps(damaged, settings));
      }
    }
  }
}

TEST_CASE(
    "an image that is too large, or comes out in another size, is refused before its pixels") {
  std::vector<float> output(3);
  const auto status = [&](const Bytes& file, std::size_t max_pixels) {
    try {
      prepare(file, Preprocess(), 1, 1, output, max_pixels);
    } catch (const ImageError& error) {
      return error.status();
    }
    return 200;
  };
  CHECK(status(jpeg(40, 30), 1199) == 413);
  CHECK(status(jpeg(40, 30), 1200) == 400);
  CHECK(status(jpeg(1, 1), 1) == 200);
  CHECK(status(png(60'000, 60'000, 8, 2, {0}), kDefaultMaxPixels) == 413);
  CHECK_THROWS_AS(prepare(jpeg(1, 1), Preprocess(), 1, 1, std::span(output).first(2)),
                  std::invalid_argument);
}

TEST_CASE("both stages' times are told") {
  std::vector<float> output(3 * 100 * 100);
  const PrepareTime time = prepare(jpeg(300, 300), crop(100, 100), 100, 100, output);
  CHECK(time.decode > 0);
  CHECK(time.resize > 0);
}
