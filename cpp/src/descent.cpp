#include "rounding_problem.hpp"

namespace leadline::rounding {
namespace {

// Features whose mutual influence is applied at once; that on all others waits for the end of the panel.
constexpr std::int64_t descent_panel = 64;

// A panel of which one code in this many moves is applied as one product; below, each move as a row of the Gram.
constexpr std::int64_t dense = 4;

struct Residuals {
    MatrixF difference;  // dequantised minus wanted, features in the Gram's order
    MatrixF product;     // difference * Gram
    MatrixF change;      // of difference, in the current panel
    std::vector<char> moving;
};

// Adds a move of one feature to the products of features [begin, end).
void move(float* product, const float* influence, float delta, std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) product[k] += delta * influence[k];
}

}  // namespace

void descend(const Problem& p, const Descent& options, std::span<std::int32_t> codes, int threads) {
    require_fit(p, static_cast<std::int64_t>(codes.size()));
    const RowTiles tiles(p.rows, p.groups, tile_rows);
    Watch watch;
    std::vector<MatrixF> grams(static_cast<std::size_t>(p.groups));
    std::vector<std::vector<std::int64_t>> orders(static_cast<std::size_t>(p.groups));
    parallel_for(p.groups, threads, [&](std::int64_t group, int) {
        orders[group] = by_diagonal(p, group);
        grams[group] = permuted(p, group, orders[group], damping_of(p, group, options.damping));
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
        rows.product.noalias() = rows.difference * gram;
        rows.moving.assign(static_cast<std::size_t>(tile.rows), 1);
        for (std::int64_t sweep = 0; sweep < options.sweeps; ++sweep) {
            std::vector<char> moved(static_cast<std::size_t>(tile.rows), 0);
            for (std::int64_t first = 0; first < p.features; first += descent_panel) {
                watch.look();
                const std::int64_t count = std::min(descent_panel, p.features - first), end = first + count;
                rows.change.setZero(tile.rows, count);
                std::int64_t moves = 0;
                for (std::int64_t r = 0; r < tile.rows; ++r) {
                    if (!rows.moving[r]) continue;
                    const std::int64_t row = tile.first + r;
                    float* product = &rows.product(r, 0);
                    for (std::int64_t j = first; j < end; ++j) {
                        const float delta = descend_code(p, options, row, order[j], product[j], gram(j, j),
                                                         codes[row * p.features + order[j]]);
                        if (delta == 0.0f) continue;
                        rows.change(r, j - first) = delta;
                        move(product, &gram(j, 0), delta, first, end);
                        moved[r] = 1, ++moves;
                    }
                }
                if (moves * dense > tile.rows * count) {
                    if (first > 0) rows.product.leftCols(first).noalias() += rows.change * gram.block(first, 0, count, first);
                    const std::int64_t rest = p.features - end;
                    if (rest > 0)
                        rows.product.rightCols(rest).noalias() += rows.change * gram.block(first, end, count, rest);
                    continue;
                }
                for (std::int64_t r = 0; r < tile.rows && moves > 0; ++r) {
                    if (!moved[r]) continue;
                    for (std::int64_t j = first; j < end; ++j) {
                        const float delta = rows.change(r, j - first);
                        if (delta == 0.0f) continue;
                        move(&rows.product(r, 0), &gram(j, 0), delta, 0, first);
                        move(&rows.product(r, 0), &gram(j, 0), delta, end, p.features);
                        --moves;
                    }
                }
            }
            rows.moving = moved;  // a row that rested for a sweep has converged
            if (std::none_of(moved.begin(), moved.end(), [](char m) { return m; })) break;
        }
    };
    all_or_nothing(codes, [&] { parallel_for(tiles.count(), threads, descend_tile, &watch); });
}

}  // namespace leadline::rounding
