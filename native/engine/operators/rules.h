// What the families in this folder share, and nobody else needs: how to write down an attribute's
// rule, the checks that several shape rules make, and the tables that operators.cc joins.
#pragma once

#include <limits>

#include "engine/operators.h"

namespace quern {

// Bounds of attributes: far beyond any network, small enough that no shape rule can overflow.
inline constexpr std::int64_t kMaxStep = 4'096;     // stride, dilation, padding
inline constexpr std::int64_t kMaxWindow = 16'384;  // sides of pooling windows and their results
inline constexpr std::int64_t kMaxGroups = 1 << 20;
inline constexpr std::int64_t kMaxAxis = kMaxRank - 1;

// An integer; a list of `count` integers; one of `shortest` to `longest`; a number that stays
// finite as float32.
constexpr AttributeRule integer_rule(std::string_view name, std::int64_t minimum,
                                     std::int64_t maximum) {
  return {name, AttributeRule::Type::kInteger, static_cast<double>(minimum),
          static_cast<double>(maximum)};
}
constexpr AttributeRule integers_rule(std::string_view name, std::size_t shortest,
                                      std::size_t longest, std::int64_t minimum,
                                      std::int64_t maximum) {
  return {name,
          AttributeRule::Type::kIntegers,
          static_cast<double>(minimum),
          static_cast<double>(maximum),
          shortest,
          longest};
}
constexpr AttributeRule integers_rule(std::string_view name, std::size_t count,
                                      std::int64_t minimum, std::int64_t maximum) {
  return integers_rule(name, count, count, minimum, maximum);
}
constexpr AttributeRule number_rule(std::string_view name,
                                    float minimum = std::numeric_limits<float>::lowest(),
                                    float maximum = std::numeric_limits<float>::max()) {
  return {name, AttributeRule::Type::kNumber, minimum, maximum};
}

constexpr AttributeRule kAxisRule = integer_rule("axis", 0, kMaxAxis);
constexpr AttributeRule kAxesRule = integers_rule("axes", 1, kMaxRank, 0, kMaxAxis);

// The first input's shape, refused unless it is [1,C,H,W].
const Shape& image_shape(const Node& node, const Graph& graph);
// The attribute `axis`, refused unless `input` has it.
std::size_t axis_of(const Node& node, const Shape& input);
// The attribute `axes`, refused unless `input` has them all and they are strictly ascending.
const std::vector<std::int64_t>& axes_of(const Node& node, const Shape& input);

std::span<const Operator> convolution_operators();
std::span<const Operator> elementwise_operators();
std::span<const Operator> pooling_operators();
std::span<const Operator> reduction_operators();
std::span<const Operator> data_movement_operators();

}  // namespace quern
