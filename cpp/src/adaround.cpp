#include <cmath>
#include <limits>
#include <numbers>

#include "rounding_problem.hpp"

namespace leadline::rounding {
namespace {

// The rectified sigmoid of the paper: sigmoid stretched to [-0.1, 1.1] and clamped to [0, 1].
constexpr float gamma = -0.1f, zeta = 1.1f;

// Adam's constants.
constexpr float keep_mean = 0.9f, keep_square = 0.999f, tiny = 1e-8f;

// Rows of a task: every step is one product with the whole Gram, which pays from more rows on.
constexpr std::int64_t soft_rows = 64;

using Plane = Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The rows of a tile that are not settled, in the first `count` rows of each plane.
struct OpenRows {
    Plane v, h, power, mean, square, floor, span;  // floor: dequantised lower neighbour minus wanted; span: to the upper one
    MatrixF difference, product, response;
    std::vector<std::int64_t> row;
    std::vector<float> gain;  // one over the row's error of nearest rounding, spread over its features
    std::int64_t count = 0;

    void resize(std::int64_t rows, std::int64_t features) {
        for (Plane* plane : {&v, &h, &power, &mean, &square, &floor, &span}) plane->resize(rows, features);
        row.resize(static_cast<std::size_t>(rows));
        gain.resize(static_cast<std::size_t>(rows));
        count = rows;
    }
    void drop(std::int64_t which) {
        const std::int64_t last = --count;
        if (which == last) return;
        for (Plane* plane : {&v, &h, &mean, &square, &floor, &span}) plane->row(which) = plane->row(last);
        std::swap(row[which], row[last]);
        std::swap(gain[which], gain[last]);
    }
};

// The published schedule with a cosine: beta falls from start to end after the warm start.
double beta_at(const AdaRound& options, std::int64_t iteration) {
    const double start = options.warm_start * static_cast<double>(options.iterations);
    const double share = (static_cast<double>(iteration) - start) / std::max(static_cast<double>(options.iterations) - start, 1.0);
    return options.beta_end + 0.5 * (options.beta_start - options.beta_end) * (1.0 + std::cos(share * std::numbers::pi));
}

// A step of Adam. The error counts in units of the row's own, so that Adam's constant means the same for every layer.
// Branches are choices of a value, so that the loop vectorises.
void step_row(OpenRows& rows, std::int64_t r, std::int64_t features, float regular, float mean_gain, float square_gain,
                 float rate) {
    const float *h = &rows.h(r, 0), *power = &rows.power(r, 0), *span = &rows.span(r, 0), *product = &rows.product(r, 0);
    float *v = &rows.v(r, 0), *mean = &rows.mean(r, 0), *square = &rows.square(r, 0);
    const float twice = 2.0f * rows.gain[r];
    for (std::int64_t j = 0; j < features; ++j) {
        const float sigmoid = (h[j] - gamma) / (zeta - gamma);
        const float slope = (h[j] > 0.0f) & (h[j] < 1.0f) & (span[j] > 0.0f) ? (zeta - gamma) * sigmoid * (1.0f - sigmoid) : 0.0f;
        const float side = h[j] > 0.5f ? regular : -regular;
        const float push = std::fabs(2.0f * h[j] - 1.0f) > 1e-3f ? side * power[j] : 0.0f;
        const float gradient = (twice * product[j] * span[j] - push) * slope;
        mean[j] = keep_mean * mean[j] + (1.0f - keep_mean) * gradient;
        square[j] = keep_square * square[j] + (1.0f - keep_square) * gradient * gradient;
        v[j] -= rate * (mean[j] * mean_gain) / (std::sqrt(square[j] * square_gain) + tiny);
    }
}

// Half the gradient of the rows' error by their weights: through the Gram, or through samples and the activation.
void influence(OpenRows& rows, const Problem& p, std::int64_t group, const MatrixF& gram, const Clipped* clipped) {
    if (clipped == nullptr) {
        rows.product.noalias() = rows.difference * gram;
        return;
    }
    const std::int64_t count = clipped->count;
    const Eigen::Map<const MatrixF> inputs(&clipped->inputs[group * count * p.features], count, p.features);
    rows.response.noalias() = rows.difference * inputs.transpose();
    const float low = clipped->low, high = clipped->high;
    for (std::int64_t r = 0; r < rows.count; ++r) {
        const float* wanted = &clipped->outputs[rows.row[r] * count];
        float* response = &rows.response(r, 0);
        for (std::int64_t s = 0; s < count; ++s) {
            const float got = wanted[s] + response[s];
            const float error = got - std::min(std::max(wanted[s], low), high);
            response[s] = (got > low) & (got < high) ? error : 0.0f;
        }
    }
    rows.product.noalias() = rows.response * inputs;
    rows.product *= 1.0f / static_cast<float>(count);
}

}  // namespace

void adaround(const Problem& p, const AdaRound& options, std::span<std::int32_t> codes, int threads,
              const Clipped* clipped) {
    require_fit(p, static_cast<std::int64_t>(codes.size()));
    if (clipped != nullptr) {
        const auto count = static_cast<std::size_t>(std::max<std::int64_t>(clipped->count, 0));
        require(count > 0 && clipped->inputs.size() == count * static_cast<std::size_t>(p.groups * p.features) &&
                    clipped->outputs.size() == count * static_cast<std::size_t>(p.rows),
                "adaround", "samples must fit the weight", std::to_string(clipped->count) + " samples");
    }
    const RowTiles tiles(p.rows, p.groups, soft_rows);
    std::vector<MatrixF> grams(static_cast<std::size_t>(p.groups));
    std::vector<std::int64_t> order(static_cast<std::size_t>(p.features));
    for (std::int64_t i = 0; i < p.features; ++i) order[i] = i;
    parallel_for(p.groups, threads, [&](std::int64_t group, int) {
        grams[group] = permuted(p, group, order, damping_of(p, group, options.damping));
    });
    const auto warm = static_cast<std::int64_t>(options.warm_start * static_cast<double>(options.iterations));
    Watch watch;
    const auto round_tile = [&](std::int64_t task, int) {
        const auto tile = tiles.at(task);
        const MatrixF& gram = grams[tile.group];
        thread_local OpenRows rows;
        rows.resize(tile.rows, p.features);
        rows.mean.setZero(), rows.square.setZero(), rows.power.setZero();
        rows.difference.resize(tile.rows, p.features);
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            const std::int64_t row = rows.row[r] = tile.first + r;
            for (std::int64_t j = 0; j < p.features; ++j) {
                const std::int64_t i = row * p.features + j, at = grid_at(p, row, j);
                const Bounds around = bounds(p, row, j, true);
                const float scale = p.scale[at], lower = scale * static_cast<float>(around.low - p.zero_point[at]);
                rows.floor(r, j) = lower - p.weight[i];
                rows.span(r, j) = around.high > around.low && gram(j, j) > 0.0f ? scale : 0.0f;
                // The start that dequantises to the weight itself, moved to the side that `codes` took.
                float part = std::clamp(-rows.floor(r, j) / scale, 0.01f, 0.99f);
                if (codes[i] == around.low) part = std::min(part, 0.45f);
                if (codes[i] == around.high && rows.span(r, j) != 0.0f) part = std::max(part, 0.55f);
                rows.v(r, j) = -std::log((zeta - gamma) / (part - gamma) - 1.0f);
                const float nearest = std::round(std::clamp(-rows.floor(r, j) / scale, 0.0f, 1.0f));
                rows.difference(r, j) = rows.floor(r, j) + nearest * rows.span(r, j);
            }
        }
        rows.product.noalias() = rows.difference * gram;
        for (std::int64_t r = 0; r < tile.rows; ++r) {
            const float unit = rows.product.row(r).dot(rows.difference.row(r)) / static_cast<float>(p.features);
            rows.gain[r] = unit > std::numeric_limits<float>::min() ? 1.0f / unit : 0.0f;
        }
        const auto settle = [&](std::int64_t r) {
            const std::int64_t row = rows.row[r];
            for (std::int64_t j = 0; j < p.features; ++j) {
                const Bounds around = bounds(p, row, j, true);
                if (rows.span(r, j) != 0.0f)
                    codes[row * p.features + j] = static_cast<std::int32_t>(rows.v(r, j) >= 0.0f ? around.high : around.low);
                else if (gram(j, j) > 0.0f)
                    codes[row * p.features + j] = static_cast<std::int32_t>(around.low);
            }
        };
        float mean_left = 1.0f, square_left = 1.0f;
        for (std::int64_t iteration = 0; iteration < options.iterations && rows.count > 0; ++iteration) {
            watch.look();
            const std::int64_t n = rows.count;
            const auto beta = static_cast<float>(beta_at(options, iteration));
            mean_left *= keep_mean, square_left *= keep_square;
            const auto v = rows.v.topRows(n);
            auto h = rows.h.topRows(n);
            h = (1.0f / (1.0f + (-v).exp())) * (zeta - gamma) + gamma;
            rows.difference.resize(n, p.features);
            rows.difference.array() = rows.floor.topRows(n) + rows.span.topRows(n) * h.max(0.0f).min(1.0f);
            influence(rows, p, tile.group, gram, clipped);
            const bool regular = iteration >= warm;
            // |2 h - 1|^(beta - 1), of the regulariser's derivative.
            if (regular) rows.power.topRows(n) = ((2.0f * h - 1.0f).abs().max(1e-3f).log() * (beta - 1.0f)).exp();
            for (std::int64_t r = 0; r < n; ++r)
                step_row(rows, r, p.features, regular ? 2.0f * beta * static_cast<float>(options.regularisation) : 0.0f, 1.0f / (1.0f - mean_left),
                            1.0f / (1.0f - square_left), static_cast<float>(options.rate));
            if (iteration > warm && iteration % 20 == 0)
                for (std::int64_t r = n; r-- > 0;) {
                    const auto sigmoid = 1.0f / (1.0f + (-rows.v.row(r)).exp());
                    const auto stretched = (sigmoid * (zeta - gamma) + gamma).max(0.0f).min(1.0f);
                    if (((stretched - 0.5f).abs() > 0.499f || rows.span.row(r) == 0.0f).all()) settle(r), rows.drop(r);
                }
        }
        for (std::int64_t r = 0; r < rows.count; ++r) settle(r);
    };
    all_or_nothing(codes, [&] { parallel_for(tiles.count(), threads, round_tile, &watch); });
}

}  // namespace leadline::rounding
