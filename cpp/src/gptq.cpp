#include <cmath>
#include <numeric>

#include "cholesky.hpp"
#include "rounding_problem.hpp"

namespace leadline::rounding {
namespace {

// Features whose errors are handed on one by one; those behind them wait for one product per panel.
constexpr std::int64_t panel_features = 64;

// Upper triangular R with R R^T = G + damping, features in `order`: |d R|^2 is the error of the differences d, and what
// features up to the j-th do to it stands in column j. It is the factor of the order-reversed matrix, reversed back.
MatrixF factorise(const Problem& p, std::int64_t group, const std::vector<std::int64_t>& order, double damping) {
    const std::int64_t n = p.features, last = n - 1;
    Eigen::MatrixXd factor(n, n);
    factorise_damped(factor, damping, "gptq", [&](Eigen::MatrixXd& reversed, double tried) {
        const double added = damping_of(p, group, tried), alone = damping_of(p, group, 1.0);
        for (std::int64_t j = 0; j < n; ++j) {
            const double* column = &p.gram[(group * n + order[last - j]) * n];
            for (std::int64_t i = j; i < n; ++i) reversed(i, j) = column[order[last - i]];
            reversed(j, j) = reversed(j, j) > 0.0 ? reversed(j, j) + added : alone;  // a dead input takes no part
        }
    });
    MatrixF upper(n, n);
    constexpr std::int64_t columns = 8;  // at a time, for the sake of caches
    for (std::int64_t first = 0; first < n; first += columns) {
        const std::int64_t end = std::min(first + columns, n);
        for (std::int64_t i = 0; i < end; ++i)
            for (std::int64_t j = std::max(first, i); j < end; ++j)
                upper(i, j) = static_cast<float>(factor(last - i, last - j));
    }
    return upper;
}

}  // namespace

void gptq(const Problem& p, const Gptq& options, std::span<std::int32_t> codes, int threads) {
    require_fit(p, static_cast<std::int64_t>(codes.size()));
    const RowTiles tiles(p.rows, p.groups, tile_rows);
    Watch watch;
    std::vector<MatrixF> factors(static_cast<std::size_t>(p.groups));
    std::vector<std::vector<std::int64_t>> orders(static_cast<std::size_t>(p.groups));
    parallel_for(
        p.groups, threads,
        [&](std::int64_t group, int) {
            orders[group] = by_diagonal(p, group);
            if (!options.ordered) std::iota(orders[group].begin(), orders[group].end(), 0);
            factors[group] = factorise(p, group, orders[group], options.damping);
        },
        &watch);
    const auto round_tile = [&](std::int64_t task, int) {
        const auto tile = tiles.at(task);
        const MatrixF& factor = factors[tile.group];
        const auto& order = orders[tile.group];
        // What the differences so far do to each feature, and those of the current panel.
        thread_local MatrixF pull, moved;
        pull.setZero(tile.rows, p.features);
        for (std::int64_t first = 0; first < p.features; first += panel_features) {
            watch.look();
            const std::int64_t count = std::min(panel_features, p.features - first);
            moved.resize(tile.rows, count);
            for (std::int64_t r = 0; r < tile.rows; ++r) {
                const std::int64_t row = tile.first + r;
                float* later = &pull(r, first);
                for (std::int64_t j = 0; j < count; ++j) {
                    const std::int64_t feature = order[first + j], i = row * p.features + feature;
                    const std::int64_t at = grid_at(p, row, feature);
                    const float* influence = &factor(first + j, first);
                    const float step = affine::nearest_step(p.weight[i] - later[j] / influence[j], p.scale[at],
                                                            static_cast<float>(p.qmin - p.zero_point[at]),
                                                            static_cast<float>(p.qmax - p.zero_point[at]));
                    codes[i] = static_cast<std::int32_t>(step) + p.zero_point[at];
                    const float difference = p.scale[at] * step - p.weight[i];
                    moved(r, j) = difference;
                    for (std::int64_t k = j + 1; k < count; ++k) later[k] += difference * influence[k];
                }
            }
            const std::int64_t rest = p.features - first - count;
            if (rest > 0)
                pull.rightCols(rest).noalias() += moved * factor.block(first, first + count, count, rest);
        }
    };
    all_or_nothing(codes, [&] { parallel_for(tiles.count(), threads, round_tile, &watch); });
}

}  // namespace leadline::rounding
