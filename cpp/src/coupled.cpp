#include <cmath>

#include "rounding_tile.hpp"

namespace leadline::rounding {
namespace {

// As in descend: half a step is a tie.
constexpr float margin = 0.501f;

}  // namespace

std::int64_t descend_coupled(const Problem& p, const Descent& options, std::span<const double> fisher,
                             std::span<std::int32_t> codes) {
    check(p, static_cast<std::int64_t>(codes.size()));
    require(p.groups == 1, "descend", "a Fisher factor needs a layer of one group",
            std::to_string(p.groups) + " groups");
    require(static_cast<std::int64_t>(fisher.size()) == p.rows * p.rows, "descend", "fisher must be rows x rows",
            std::to_string(fisher.size()) + " values");
    const auto order = by_diagonal(p, 0);
    const MatrixF gram = permuted(p, 0, order);
    const MatrixF weights = Eigen::Map<const MatrixD>(fisher.data(), p.rows, p.rows).cast<float>();
    MatrixF difference(p.rows, p.features);
    for (std::int64_t row = 0; row < p.rows; ++row)
        for (std::int64_t j = 0; j < p.features; ++j) {
            const std::int64_t at = cell(p, row, order[j]), i = row * p.features + order[j];
            difference(row, j) =
                static_cast<float>(static_cast<double>(p.scale[at]) * (codes[i] - p.zero_point[at]) - p.weight[i]);
        }
    Eigen::RowVectorXf together(p.features), product(p.features);
    std::int64_t total = 0;
    for (std::int64_t sweep = 0; sweep < options.sweeps; ++sweep) {
        std::int64_t changed = 0;
        for (std::int64_t row = 0; row < p.rows; ++row) {
            const float own = weights(row, row);
            if (!(own > 0.0f)) continue;  // an output that nothing depends on
            // With all other rows fixed, this row's error is a plain layer's, its difference shifted by theirs.
            together.noalias() = weights.row(row) * difference;
            together /= own;
            product.noalias() = together * gram;
            for (std::int64_t j = 0; j < p.features; ++j) {
                const float curvature = gram(j, j);
                if (!(curvature > 0.0f)) continue;
                const std::int64_t feature = order[j], at = cell(p, row, feature);
                const float wanted = -product[j] / curvature / p.scale[at];
                if (!(std::fabs(wanted) >= margin)) continue;
                const Bounds allowed = bounds(p, row, feature, options.neighbours);
                std::int32_t& code = codes[row * p.features + feature];
                const auto step = static_cast<std::int64_t>(affine::round_even(std::clamp(wanted, -1e6f, 1e6f)));
                const std::int64_t next = std::clamp(code + step, allowed.low, allowed.high);
                if (next == code || (next > code) != (step > 0)) continue;
                const float delta = p.scale[at] * static_cast<float>(next - code);
                code = static_cast<std::int32_t>(next);
                difference(row, j) += delta;
                product += delta * gram.row(j);
                ++changed;
            }
        }
        total += changed;
        if (changed == 0) break;
    }
    return total;
}

}  // namespace leadline::rounding
