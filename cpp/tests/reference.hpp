#pragma once
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "leadline/rounding.hpp"
#include "testing.hpp"

// A rounding problem that owns its arrays, with what it says about codes written out in double: no Eigen, no tiles.
struct OwnedProblem {
    std::vector<float> weight, scale;
    std::vector<double> gram;
    std::vector<std::int32_t> zero_point;
    std::int64_t rows, features, qmin = -8, qmax = 7;

    // Weights in [-2, 2], one grid of scale 0.4 to 0.6 for each row, and the Gram of samples whose features share a
    // part: without `mixing` they are apart, and the Gram is diagonal.
    OwnedProblem(std::int64_t rows, std::int64_t features, unsigned seed, float mixing)
        : weight(uniform(static_cast<std::size_t>(rows * features), seed, -2.0f, 2.0f)),
          scale(uniform(static_cast<std::size_t>(rows), seed + 1, 0.4f, 0.6f)),
          gram(static_cast<std::size_t>(features * features)),
          zero_point(static_cast<std::size_t>(rows), 1),
          rows(rows),
          features(features) {
        const std::int64_t samples = 2 * features + 8;
        const auto noise = uniform(static_cast<std::size_t>(samples * features), seed + 2, -1.0f, 1.0f);
        const auto common = uniform(static_cast<std::size_t>(samples), seed + 3, -1.0f, 1.0f);
        const auto share = uniform(static_cast<std::size_t>(features), seed + 4, 0.5f, 2.0f);
        for (std::int64_t i = 0; i < features; ++i)
            for (std::int64_t j = 0; j < features; ++j)
                for (std::int64_t s = 0; s < samples; ++s) {
                    const double a = share[i] * (noise[s * features + i] + mixing * common[s]);
                    const double b = share[j] * (noise[s * features + j] + mixing * common[s]);
                    if (mixing != 0.0f || i == j) gram[i * features + j] += a * b / static_cast<double>(samples);
                }
    }
    leadline::rounding::Problem problem() const {
        return {weight, gram, scale, zero_point, rows, features, 1, 1, qmin, qmax};
    }
    double off(std::int64_t row, std::int64_t feature, std::int64_t code) const {
        return static_cast<double>(scale[row]) * static_cast<double>(code - zero_point[row]) -
               static_cast<double>(weight[row * features + feature]);
    }
    double error(std::int64_t row, const std::vector<std::int32_t>& codes) const {
        double total = 0.0;
        for (std::int64_t i = 0; i < features; ++i)
            for (std::int64_t j = 0; j < features; ++j)
                total += off(row, i, codes[row * features + i]) * gram[i * features + j] *
                         off(row, j, codes[row * features + j]);
        return total;
    }
    // The lower of the two codes beside a weight; none lies at an end of the grid.
    std::int32_t below(std::int64_t row, std::int64_t feature) const {
        const double exact = static_cast<double>(weight[row * features + feature]) / scale[row] + zero_point[row];
        return static_cast<std::int32_t>(std::floor(exact));
    }
    std::vector<std::int32_t> nearest() const {
        std::vector<std::int32_t> codes(weight.size());
        for (std::int64_t row = 0; row < rows; ++row)
            for (std::int64_t i = 0; i < features; ++i) {
                const std::int32_t low = below(row, i);
                const bool lower = std::fabs(off(row, i, low)) <= std::fabs(off(row, i, low + 1));
                codes[row * features + i] = lower ? low : low + 1;
            }
        return codes;
    }
    // The best of all 2^features roundings of each row up or down.
    std::vector<std::int32_t> best() const {
        std::vector<std::int32_t> best = nearest(), tried = best;
        for (std::int64_t row = 0; row < rows; ++row) {
            double least = error(row, best);
            for (std::uint32_t choice = 0; choice < 1u << features; ++choice) {
                for (std::int64_t i = 0; i < features; ++i)
                    tried[row * features + i] = below(row, i) + static_cast<std::int32_t>(choice >> i & 1u);
                if (const double total = error(row, tried); total < least) {
                    least = total;
                    for (std::int64_t i = 0; i < features; ++i) best[row * features + i] = tried[row * features + i];
                }
            }
        }
        return best;
    }
};

// The inverse of a positive definite matrix, by Gauss and Jordan.
inline std::vector<double> inverse(std::vector<double> a, std::int64_t n) {
    std::vector<double> b(a.size());
    for (std::int64_t i = 0; i < n; ++i) b[i * n + i] = 1.0;
    for (std::int64_t k = 0; k < n; ++k) {
        const double pivot = a[k * n + k];
        for (std::int64_t j = 0; j < n; ++j) a[k * n + j] /= pivot, b[k * n + j] /= pivot;
        for (std::int64_t i = 0; i < n; ++i) {
            const double factor = a[i * n + k];
            if (i == k || factor == 0.0) continue;
            for (std::int64_t j = 0; j < n; ++j) {
                a[i * n + j] -= factor * a[k * n + j];
                b[i * n + j] -= factor * b[k * n + j];
            }
        }
    }
    return b;
}
