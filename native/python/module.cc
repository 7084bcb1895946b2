// The engine seen from Python: so that the golden set, the tests and a notebook ask the very code
// that serves.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine/model.h"
#include "image/decode.h"
#include "image/preprocess.h"
#include "image/resize.h"

namespace py = pybind11;

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;

std::span<const std::uint8_t> bytes_of(const py::bytes& bytes) {
  const auto view = static_cast<std::string_view>(bytes);
  return {reinterpret_cast<const std::uint8_t*>(view.data()), view.size()};
}

quern::ColorMode mode_of(const std::string& mode) {
  if (mode == "RGB") return quern::ColorMode::kRgb;
  if (mode == "L") return quern::ColorMode::kL;
  throw std::invalid_argument("mode \"" + mode + "\" is neither \"RGB\" nor \"L\"");
}

quern::Interpolation interpolation_of(const std::string& name) {
  if (name == "nearest") return quern::Interpolation::kNearest;
  if (name == "bilinear") return quern::Interpolation::kBilinear;
  if (name == "bicubic") return quern::Interpolation::kBicubic;
  throw std::invalid_argument("interpolation \"" + name +
                              "\" is not \"nearest\", \"bilinear\" or \"bicubic\"");
}

py::array_t<std::uint8_t> array_of(const quern::Image& image) {
  std::vector<py::ssize_t> shape = {image.height, image.width};
  if (image.channels > 1) shape.push_back(image.channels);
  py::array_t<std::uint8_t> array(shape);
  std::copy(image.pixels.begin(), image.pixels.end(), array.mutable_data());
  return array;
}

quern::InstructionSet instructions_of(const std::string& name) {
  if (name.empty()) return quern::best_instruction_set();
  std::string known;
  for (const quern::InstructionSet set : quern::instruction_sets()) {
    if (quern::name_of(set) == name) return set;
    known += (known.empty() ? "" : ", ") + std::string(quern::name_of(set));
  }
  throw std::invalid_argument("instructions \"" + name + "\" are not this CPU's: it has " + known);
}

// A model with one session. Threads take turns at it; the GIL is released while it computes.
class NativeModel {
 public:
  NativeModel(const std::string& path, const std::string& instructions)
      : model_(quern::Model::load(path, instructions_of(instructions))), session_(model_) {}

  const quern::Model& model() const { return *model_; }

  py::array_t<float> logits(const py::array& input) {
    const FloatArray array = checked(input);
    const std::span<const float> data(array.data(), static_cast<std::size_t>(array.size()));
    return array_of_logits([&] { return run(data); });
  }

  py::array_t<float> logits_of_image(const py::bytes& file) {
    const auto bytes = bytes_of(file);
    return array_of_logits([&] { return run_image(bytes); });
  }

  std::vector<std::pair<std::size_t, float>> predict(const py::bytes& file, std::size_t top) {
    const auto bytes = bytes_of(file);
    const py::gil_scoped_release released;
    std::vector<std::pair<std::size_t, float>> result;
    for (const auto& [class_id, score] : quern::top_k(quern::softmax(run_image(bytes)), top)) {
      result.emplace_back(class_id, score);
    }
    return result;
  }

 private:
  // The input as float32 C-contiguous of the model's shape; copied only when it isn't contiguous.
  FloatArray checked(const py::array& input) const {
    if (!py::isinstance<py::array_t<float>>(input)) {
      throw std::invalid_argument("the input's dtype is " + std::string(py::str(input.dtype())) +
                                  ", not float32");
    }
    quern::Shape shape(input.shape(), input.shape() + input.ndim());
    if (shape.size() == 3) shape.insert(shape.begin(), 1);
    if (shape != model_->input_shape()) {
      throw std::invalid_argument("the input's shape is " + quern::to_string(shape) +
                                  ", the model takes " + quern::to_string(model_->input_shape()));
    }
    FloatArray array = FloatArray::ensure(input);
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) != 0) {
      array = FloatArray(array.attr("copy")());
    }
    return array;
  }

  std::vector<float> run(std::span<const float> input) {
    const std::scoped_lock lock(turn_);
    const std::span<const float> logits = session_.logits(input);
    return {logits.begin(), logits.end()};
  }

  std::vector<float> run_image(std::span<const std::uint8_t> file) {
    const std::scoped_lock lock(turn_);
    quern::prepare(file, model_->preprocess(), model_->height(), model_->width(), session_.input());
    const std::span<const float> logits = session_.logits(session_.input());
    return {logits.begin(), logits.end()};
  }

  template <typename Compute>
  static py::array_t<float> array_of_logits(const Compute& compute) {
    std::vector<float> logits;
    {
      const py::gil_scoped_release released;
      logits = compute();
    }
    return py::array_t<float>(static_cast<py::ssize_t>(logits.size()), logits.data());
  }

  std::shared_ptr<const quern::Model> model_;
  quern::Session session_;
  std::mutex turn_;
};

py::array_t<std::uint8_t> decode(const py::bytes& file, const std::string& mode,
                                 std::size_t max_pixels) {
  const auto bytes = bytes_of(file);
  const quern::ColorMode color = mode_of(mode);
  quern::Image image;
  {
    const py::gil_scoped_release released;
    image = quern::decode(bytes, color, max_pixels);
  }
  return array_of(image);
}

py::array_t<std::uint8_t> resize(const ByteArray& array, std::pair<int, int> size,
                                 const std::string& interpolation) {
  if (array.ndim() != 2 && (array.ndim() != 3 || array.shape(2) != 3)) {
    throw std::invalid_argument("the array is neither [H, W] nor [H, W, 3]");
  }
  if (std::max(array.shape(0), array.shape(1)) > quern::kMaxSide) {
    throw std::invalid_argument("the array has a side longer than " +
                                std::to_string(quern::kMaxSide));
  }
  quern::Image image;
  image.height = static_cast<int>(array.shape(0));
  image.width = static_cast<int>(array.shape(1));
  image.channels = array.ndim() == 2 ? 1 : 3;
  image.pixels.assign(array.data(), array.data() + array.size());
  return array_of(quern::resize(image, size.first, size.second, interpolation_of(interpolation)));
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const quern::WeightsError& error) {
    py::set_error(PyExc_ValueError, error.what());
  } catch (const quern::ImageError& error) {
    py::set_error(PyExc_ValueError, (std::to_string(error.status()) + ": " + error.what()).c_str());
  }
}

}  // namespace

PYBIND11_MODULE(quern_native, module) {
  module.doc() = "Quern's native engine and image path.";
  py::register_local_exception_translator(translate);

  py::class_<NativeModel>(module, "Model",
                          "A network read from model_weights.bin.\n\n"
                          "One forward pass runs at a time; the GIL is released meanwhile.")
      .def(py::init<const std::string&, const std::string&>(), py::arg("path"),
           py::arg("instructions") = "",
           "Read and check the file; `instructions` is one of instruction_sets(), the best if\n"
           "left out. ValueError: what is wrong, in one sentence.")
      .def("logits", &NativeModel::logits, py::arg("input"),
           "float32 [C, H, W] or [1, C, H, W], already preprocessed -> float32 [classes].\n\n"
           "A C-contiguous input is not copied. ValueError: another dtype or shape.")
      .def("logits_of_image", &NativeModel::logits_of_image, py::arg("file"),
           "The bytes of a JPEG or PNG file -> float32 [classes].\n\n"
           "ValueError: \"<HTTP status>: <sentence>\".")
      .def("predict", &NativeModel::predict, py::arg("file"), py::arg("top") = 5,
           "The bytes of a JPEG or PNG file -> the `top` best as [(class_id, score), ...],\n"
           "best first; score is the softmax over all classes.\n\n"
           "ValueError: \"<HTTP status>: <sentence>\".")
      .def_property_readonly(
          "input_shape", [](const NativeModel& self) { return self.model().input_shape(); },
          "[1, C, H, W]")
      .def_property_readonly(
          "instructions",
          [](const NativeModel& self) {
            return std::string(quern::name_of(self.model().instructions()));
          },
          "The instruction set it runs with.")
      .def_property_readonly(
          "classes", [](const NativeModel& self) { return self.model().classes(); },
          "The class labels, in the order of the logits.")
      .def_property_readonly(
          "weights_digest", [](const NativeModel& self) { return self.model().weights_digest(); },
          "xxh3_128 of the file, 32 hex digits.");

  module.def(
      "instruction_sets",
      [] {
        std::vector<std::string> names;
        for (const quern::InstructionSet set : quern::instruction_sets()) {
          names.emplace_back(quern::name_of(set));
        }
        return names;
      },
      "Names of the instruction sets that this CPU runs, the fastest last.");
  module.def("decode", &decode, py::arg("file"), py::arg("mode"),
             py::arg("max_pixels") = quern::kDefaultMaxPixels,
             "The bytes of a JPEG or PNG file -> uint8 [H, W] for mode \"L\", [H, W, 3] for\n"
             "\"RGB\", as Pillow's Image.open(file).convert(mode).\n\n"
             "ValueError: \"<HTTP status>: <sentence>\".");
  module.def("resize", &resize, py::arg("image"), py::arg("size"), py::arg("interpolation"),
             "uint8 [H, W] or [H, W, 3] -> the same of size (height, width), as Pillow's\n"
             "resize() with the horizontal pass first; interpolation is \"nearest\", \"bilinear\"\n"
             "or \"bicubic\".\n\n"
             "ValueError: another shape, or a size out of bounds.");
}
