#include "rounding_problem.hpp"

namespace leadline::rounding {
namespace {

// Features whose mutual influence is applied at once; that on all others waits for one product per panel.
constexpr std::int64_t descent_panel = 64;

// How often products are taken afresh, so that float errors of updates do not pile up.
constexpr std::int64_t refresh = 8;

struct Residuals {
    MatrixF difference;  // dequantised minus wanted, features in the Gram's order
    MatrixF product;     // difference * Gram
    MatrixF change;      // of difference, in the current panel
    std::vector<char> moving;
};

}  // namespace

void descend(const Problem& p, const Descent& options, std::span<std::int32_t> codes, int threads) {
    require_fit(p, static_cast<std::int64_t>(codes.size()));
    const RowTiles tiles(p.rows, p.groups, tile_rows);
    Watch watch;
    std::vector<MatrixF> grams(static_cast<std::size_t>(p.groups));
    std::vector<std::vector<std::int64_t>> orders(static_cast<std::size_t>(p.groups));
    parallel_for(p.groups, threads, [&](std::int64_t group, int) {
        orders[group] = by_diagonal(p, group);
        grams[group] = permuted(p, group, orders[group]);
    });
    const auto descend_tile = [&](std::int64_t task, int) {
        const auto tile = tiles.at(task);
        const MatrixF& gram = grams[tile.group];
        const auto& order = orders[tile.group];
        thread_local Residuals rows;
        rows.difference.resize(tile.rows, p.features);
        for (std::int64_t r = 0; r < tile.rows; ++r)
            for (std::int64_t j = 0; j < p.features; ++j) {
                const std::int64_t row = tile.first + r, feature = order[j];
                rows.difference(r, j) =
                    static_cast<float>(difference(p, row, feature, codes[row * p.features + feature]));
            }
        rows.moving.assign(static_cast<std::size_t>(tile.rows), 1);
        for (std::int64_t sweep = 0; sweep < options.sweeps; ++sweep) {
            if (sweep % refresh == 0) rows.product.noalias() = rows.difference * gram;
            std::vector<char> moved(static_cast<std::size_t>(tile.rows), 0);
            for (std::int64_t first = 0; first < p.features; first += descent_panel) {
                watch.look();
                const std::int64_t count = std::min(descent_panel, p.features - first);
                rows.change.setZero(tile.rows, count);
                bool any = false;
                for (std::int64_t r = 0; r < tile.rows; ++r) {
                    if (!rows.moving[r]) continue;
                    const std::int64_t row = tile.first + r;
                    float* product = &rows.product(r, first);
                    for (std::int64_t j = 0; j < count; ++j) {
                        const std::int64_t feature = order[first + j];
                        const float delta = descend_code(p, options, row, feature, product[j], gram(first + j, first + j),
                                                         codes[row * p.features + feature]);
                        if (delta == 0.0f) continue;
                        rows.difference(r, first + j) += delta;
                        rows.change(r, j) += delta;
                        const float* influence = &gram(first + j, first);
                        for (std::int64_t k = 0; k < count; ++k) product[k] += delta * influence[k];
                        moved[r] = 1, any = true;
                    }
                }
                if (!any) continue;
                if (first > 0)
                    rows.product.leftCols(first).noalias() += rows.change * gram.block(first, 0, count, first);
                const std::int64_t rest = p.features - first - count;
                if (rest > 0)
                    rows.product.rightCols(rest).noalias() += rows.change * gram.block(first, first + count, count, rest);
            }
            // A row that rested for a sweep has converged, unless fresh products show otherwise: they come regularly.
            rows.moving = moved;
            if (std::none_of(moved.begin(), moved.end(), [](char m) { return m; })) break;
        }
    };
    all_or_nothing(codes, [&] { parallel_for(tiles.count(), threads, descend_tile, &watch); });
}

}  // namespace leadline::rounding
