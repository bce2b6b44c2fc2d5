#include "leadline/rounding.hpp"

#include <numeric>

#include "rounding_problem.hpp"

namespace leadline::rounding {

void require_fit(const Problem& p, std::int64_t codes) {
    const auto grids = static_cast<std::size_t>(std::max<std::int64_t>(p.rows * p.blocks, 0));
    require(p.rows > 0 && p.features > 0 && p.groups > 0 && p.blocks > 0 && p.rows % p.groups == 0 &&
                p.features % p.blocks == 0 && static_cast<std::int64_t>(p.weight.size()) == p.rows * p.features &&
                static_cast<std::int64_t>(p.gram.size()) == p.groups * p.features * p.features &&
                p.scale.size() == grids && p.zero_point.size() == grids && codes == p.rows * p.features,
            "rounding", "weight, gram, grid and codes must fit each other",
            std::to_string(p.rows) + " rows of " + std::to_string(p.features) + " features");
}

std::vector<std::int64_t> by_diagonal(const Problem& p, std::int64_t group) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(p.features));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return gram_at(p, group, a, a) > gram_at(p, group, b, b);
    });
    return order;
}

double damping_of(const Problem& p, std::int64_t group, double damping) {
    double mean = 0.0;
    for (std::int64_t i = 0; i < p.features; ++i) mean += gram_at(p, group, i, i);
    mean /= static_cast<double>(p.features);
    return damping * (mean > 0.0 ? mean : 1.0);
}

MatrixF permuted(const Problem& p, std::int64_t group, const std::vector<std::int64_t>& order, double added) {
    MatrixF out(p.features, p.features);
    for (std::int64_t i = 0; i < p.features; ++i) {
        const double* row = &p.gram[(group * p.features + order[i]) * p.features];
        for (std::int64_t j = 0; j < p.features; ++j) out(i, j) = static_cast<float>(row[order[j]] + (i == j ? added : 0.0));
    }
    return out;
}

void error(const Problem& p, std::span<const std::int32_t> codes, std::span<double> out, int threads) {
    require_fit(p, static_cast<std::int64_t>(codes.size()));
    require(static_cast<std::int64_t>(out.size()) == p.rows, "rounding", "out must hold a value for each row",
            std::to_string(out.size()));
    const RowTiles tiles(p.rows, p.groups, tile_rows);
    parallel_for(tiles.count(), threads, [&](std::int64_t task, int) {
        const auto tile = tiles.at(task);
        thread_local MatrixD differences, product;
        differences.resize(tile.rows, p.features);
        for (std::int64_t r = 0; r < tile.rows; ++r)
            for (std::int64_t j = 0; j < p.features; ++j) {
                const std::int64_t row = tile.first + r;
                differences(r, j) = difference(p, row, j, codes[row * p.features + j]);
            }
        const Eigen::Map<const MatrixD> gram(&p.gram[tile.group * p.features * p.features], p.features, p.features);
        product.noalias() = differences * gram;
        for (std::int64_t r = 0; r < tile.rows; ++r) out[tile.first + r] = product.row(r).dot(differences.row(r));
    });
}

}  // namespace leadline::rounding
