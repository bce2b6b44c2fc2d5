#pragma once
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "leadline/affine.hpp"
#include "leadline/error.hpp"
#include "parallel.hpp"
#include "leadline/rounding.hpp"

// What the solvers share: tiles of rows of one group, the Gram as they read it, grids, and codes.
namespace leadline::rounding {

using MatrixF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixD = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Rows of a task: each of its products copies the Gram once, which pays from more rows on.
inline constexpr std::int64_t tile_rows = 64;

void require_fit(const Problem& problem, std::int64_t codes);

inline double gram_at(const Problem& p, std::int64_t group, std::int64_t i, std::int64_t j) {
    return p.gram[(group * p.features + i) * p.features + j];
}

// `damping` of the mean diagonal of a group's Gram; of 1 where that is zero, since then any rounding is as good.
double damping_of(const Problem& problem, std::int64_t group, double damping);

// The Gram of a group in float, rows and columns in `order`, `added` to its diagonal.
MatrixF permuted(const Problem& problem, std::int64_t group, const std::vector<std::int64_t>& order, double added = 0.0);

// Features of a group, of the largest diagonal first; ties keep their order.
std::vector<std::int64_t> by_diagonal(const Problem& problem, std::int64_t group);

// Where a weight's scale and zero point lie.
inline std::int64_t grid_at(const Problem& p, std::int64_t row, std::int64_t feature) {
    return p.blocks == 1 ? row : row * p.blocks + feature / p.block_size();
}

// The lowest and highest code that a weight may take.
struct Bounds {
    std::int64_t low, high;
};
inline Bounds bounds(const Problem& p, std::int64_t row, std::int64_t feature, bool neighbours) {
    if (!neighbours) return {p.qmin, p.qmax};
    const std::int64_t at = grid_at(p, row, feature);
    const double exact = static_cast<double>(p.weight[row * p.features + feature]) / p.scale[at] + p.zero_point[at];
    const auto below = static_cast<std::int64_t>(std::floor(std::clamp(exact, -1e9, 1e9)));
    return {std::clamp(below, p.qmin, p.qmax), std::clamp(below + 1, p.qmin, p.qmax)};
}

// What a weight with this code dequantises to, less what is wanted.
inline double difference(const Problem& p, std::int64_t row, std::int64_t feature, std::int64_t code) {
    const std::int64_t at = grid_at(p, row, feature);
    return static_cast<double>(p.scale[at]) * static_cast<double>(code - p.zero_point[at]) -
           p.weight[row * p.features + feature];
}

// A move must gain: half a step is a tie, and float noise must not make codes swing for ever.
inline constexpr float margin = 0.501f;

// Descent by one coordinate: the code takes the value that is best where `product`, half the slope of the error, and
// `curvature` say so. Returns by how much the weight moves.
inline float descend_code(const Problem& p, const Descent& options, std::int64_t row, std::int64_t feature, float product,
                          float curvature, std::int32_t& code) {
    if (!(curvature > 0.0f)) return 0.0f;  // an input that is always zero: any code is as good
    const float scale = p.scale[grid_at(p, row, feature)];
    if (!(std::fabs(product) >= margin * (curvature * scale))) return 0.0f;
    const float wanted = -product / curvature / scale;
    const Bounds allowed = bounds(p, row, feature, options.neighbours);
    const auto step = static_cast<std::int64_t>(affine::round_even(std::clamp(wanted, -1e6f, 1e6f)));
    const std::int64_t next = std::clamp(code + step, allowed.low, allowed.high);
    // Cut short by the grid's end, a move still gains if it goes the wanted way; from outside the allowed codes it may
    // not be forced.
    if (next == code || (next > code) != (step > 0)) return 0.0f;
    const float moved = scale * static_cast<float>(next - code);
    code = static_cast<std::int32_t>(next);
    return moved;
}

}  // namespace leadline::rounding
