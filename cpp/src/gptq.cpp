#include <Eigen/Cholesky>
#include <cmath>
#include <numeric>

#include "rounding_problem.hpp"

namespace leadline::rounding {
namespace {

// Features whose errors are handed on one by one; those behind them wait for one product per panel.
constexpr std::int64_t panel_features = 128;

// The lower triangle of `l` becomes its inverse: [A 0; B C]^-1 = [A^-1 0; -C^-1 B A^-1  C^-1], a third of the work of
// solving for every unit vector.
void invert_lower(Eigen::Ref<Eigen::MatrixXd> l) {
    const Eigen::Index n = l.rows(), half = n / 2;
    if (n <= 64) {
        Eigen::MatrixXd inverse = Eigen::MatrixXd::Identity(n, n);
        l.triangularView<Eigen::Lower>().solveInPlace(inverse);
        l.triangularView<Eigen::Lower>() = inverse;
        return;
    }
    auto a = l.topLeftCorner(half, half), b = l.bottomLeftCorner(n - half, half), c = l.bottomRightCorner(n - half, n - half);
    invert_lower(a);
    const Eigen::MatrixXd moved = b * a.triangularView<Eigen::Lower>();
    b = -moved;
    c.triangularView<Eigen::Lower>().solveInPlace(b);
    invert_lower(c);
}

// Upper triangular U with U^T U = (G + damping)^-1, features in `order`. The factor of the order-reversed matrix,
// inverted and reversed back, is U: one factorisation, and the inverse itself is never formed.
MatrixF factorise(const Problem& p, std::int64_t group, const std::vector<std::int64_t>& order, double damping) {
    const std::int64_t n = p.features;
    double mean = 0.0;
    for (std::int64_t i = 0; i < n; ++i) mean += gram_at(p, group, i, i);
    mean /= static_cast<double>(n);
    if (!(mean > 0.0)) mean = 1.0;  // all inputs are zero: any rounding is as good
    for (int attempt = 0;; ++attempt, damping = std::max(damping * 10.0, 1e-8)) {
        Eigen::MatrixXd reversed(n, n);
        for (std::int64_t i = 0; i < n; ++i)
            for (std::int64_t j = 0; j < n; ++j)
                reversed(n - 1 - i, n - 1 - j) = gram_at(p, group, order[i], order[j]);
        for (std::int64_t i = 0; i < n; ++i) {
            double& diagonal = reversed(i, i);
            diagonal = diagonal > 0.0 ? diagonal + damping * mean : mean;  // a dead input takes no part
        }
        const Eigen::LLT<Eigen::MatrixXd> cholesky(reversed);
        if (cholesky.info() == Eigen::Success) {
            Eigen::MatrixXd inverse = cholesky.matrixLLT();
            invert_lower(inverse);
            MatrixF upper(n, n);
            for (std::int64_t i = 0; i < n; ++i)
                for (std::int64_t j = 0; j < n; ++j)
                    upper(i, j) = j < i ? 0.0f : static_cast<float>(inverse(n - 1 - i, n - 1 - j));
            return upper;
        }
        require(attempt < 12, "gptq", "the Gram must become positive definite by damping", std::to_string(damping));
    }
}

}  // namespace

void gptq(const Problem& p, const Gptq& options, std::span<std::int32_t> codes, int threads) {
    require_fit(p, static_cast<std::int64_t>(codes.size()));
    const RowTiles tiles(p.rows, p.groups, tile_rows);
    std::vector<MatrixF> factors(static_cast<std::size_t>(p.groups));
    std::vector<std::vector<std::int64_t>> orders(static_cast<std::size_t>(p.groups));
    parallel_for(p.groups, threads, [&](std::int64_t group, int) {
        orders[group] = by_diagonal(p, group);
        if (!options.ordered) std::iota(orders[group].begin(), orders[group].end(), 0);
        factors[group] = factorise(p, group, orders[group], options.damping);
    });
    parallel_for(tiles.count(), threads, [&](std::int64_t task, int) {
        const auto tile = tiles.at(task);
        const MatrixF& upper = factors[tile.group];
        const auto& order = orders[tile.group];
        thread_local MatrixF work, errors;
        work.resize(tile.rows, p.features);
        for (std::int64_t r = 0; r < tile.rows; ++r)
            for (std::int64_t j = 0; j < p.features; ++j)
                work(r, j) = p.weight[(tile.first + r) * p.features + order[j]];
        for (std::int64_t first = 0; first < p.features; first += panel_features) {
            const std::int64_t count = std::min(panel_features, p.features - first);
            errors.resize(tile.rows, count);
            for (std::int64_t r = 0; r < tile.rows; ++r) {
                const std::int64_t row = tile.first + r;
                for (std::int64_t j = 0; j < count; ++j) {
                    const std::int64_t feature = order[first + j], at = grid_at(p, row, feature);
                    float* rest = &work(r, first);
                    const float step = affine::nearest_step(rest[j], p.scale[at],
                                                            static_cast<float>(p.qmin - p.zero_point[at]),
                                                            static_cast<float>(p.qmax - p.zero_point[at]));
                    codes[row * p.features + feature] = static_cast<std::int32_t>(step) + p.zero_point[at];
                    const float error = (rest[j] - p.scale[at] * step) / upper(first + j, first + j);
                    errors(r, j) = error;
                    const float* influence = &upper(first + j, first);
                    for (std::int64_t k = j + 1; k < count; ++k) rest[k] -= error * influence[k];
                }
            }
            const std::int64_t later = p.features - first - count;
            if (later > 0)
                work.rightCols(later).noalias() -= errors * upper.block(first, first + count, count, later);
        }
    });
}

}  // namespace leadline::rounding
