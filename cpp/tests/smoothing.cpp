#include "leadline/smoothing.hpp"

#include <cmath>

#include "testing.hpp"

using namespace leadline;

namespace {

const affine::Scheme symmetric{-127, 127, 0, true, affine::Fit::absmax};
const affine::Scheme asymmetric{0, 15, 8, false, affine::Fit::absmax};

std::vector<double> gram_of(std::int64_t features) {
    const auto x = normal(static_cast<std::size_t>(features * 40), 3);
    std::vector<double> gram(static_cast<std::size_t>(features * features));
    for (std::int64_t r = 0; r < 40; ++r)
        for (std::int64_t i = 0; i < features; ++i)
            for (std::int64_t j = 0; j < features; ++j)
                gram[i * features + j] += static_cast<double>(x[r * features + i]) * x[r * features + j] / 40;
    return gram;
}

// Row by row, feature by feature, in double.
double plain(const smoothing::Layer& layer, std::span<const double> scales, const affine::Scheme& scheme,
             std::int64_t block) {
    const std::int64_t n = layer.features(), run = block == 0 ? n : block;
    std::vector<float> scaled(layer.weight.begin(), layer.weight.end());
    for (std::size_t i = 0; i < scaled.size(); ++i)
        scaled[i] = static_cast<float>(scaled[i] * scales[i % n / layer.taps]);
    double total = 0.0;
    std::vector<double> d(static_cast<std::size_t>(n));
    for (std::int64_t r = 0; r < layer.rows; ++r) {
        for (std::int64_t begin = 0; begin < n; begin += run) {
            double lo = 0.0, hi = 0.0;
            const bool whole = block == 0;
            for (std::size_t i = whole ? 0 : r * n + begin; i < (whole ? scaled.size() : r * n + begin + run); ++i)
                lo = std::fmin(lo, scaled[i]), hi = std::fmax(hi, scaled[i]);
            const affine::Steps steps(affine::choose(lo, hi, scheme), scheme);
            for (std::int64_t j = begin; j < begin + run; ++j) {
                const float v = scaled[r * n + j];
                const float q = affine::nearest_step(v, steps.scale, steps.lowest, steps.highest);
                d[j] = (static_cast<double>(q) * steps.scale - v) / scales[j / layer.taps];
            }
        }
        for (std::int64_t i = 0; i < n; ++i)
            for (std::int64_t j = 0; j < n; ++j) total += d[i] * layer.gram[i * n + j] * d[j];
    }
    return total;
}

}  // namespace

TEST(errors_are_the_plain_ones) {
    const std::int64_t shapes[][3] = {{1, 1, 1}, {3, 2, 4}, {65, 17, 1}, {64, 128, 1}, {70, 43, 3}, {130, 1, 9}};
    for (const auto& [rows, channels, taps] : shapes) {
        const std::int64_t n = channels * taps;
        const auto weight = normal(static_cast<std::size_t>(rows * n), 5);
        const auto gram = gram_of(n);
        const smoothing::Layer layer{weight, gram, rows, channels, taps};
        std::vector<double> scales(static_cast<std::size_t>(3 * channels), 1.0);
        for (std::size_t i = channels; i < scales.size(); ++i)
            scales[i] = std::ldexp(1.0 + 0.01 * static_cast<double>(i % 7), static_cast<int>(i % 5) - 2);
        for (const auto& scheme : {symmetric, asymmetric})
            for (const std::int64_t block : {n, taps, std::int64_t{0}}) {
                std::vector<double> first(3), again(3);
                smoothing::weight_errors(layer, scales, scheme, block, first, 1);
                for (int threads : {2, 3}) {
                    smoothing::weight_errors(layer, scales, scheme, block, again, threads);
                    CHECK(again == first);
                }
                for (std::size_t c = 0; c < 3; ++c) {
                    const std::span<const double> tried(&scales[c * channels], static_cast<std::size_t>(channels));
                    const double wanted = plain(layer, tried, scheme, block);
                    CHECK(std::fabs(first[c] - wanted) <= 1e-4 * wanted + 1e-9);
                }
            }
    }
}

TEST(misfits_are_refused) {
    const auto weight = normal(12), short_weight = normal(11);
    const auto gram = gram_of(4);
    const std::vector<double> scales(8, 1.0), few(7, 1.0);
    std::vector<double> out(2);
    const auto call = [&](const std::vector<float>& w, const std::vector<double>& s, std::int64_t block) {
        return refused([&] { smoothing::weight_errors({w, gram, 3, 4, 1}, s, symmetric, block, out, 1); }, "must fit");
    };
    CHECK(call(short_weight, scales, 4) && call(weight, few, 4) && call(weight, scales, 3) && call(weight, scales, -1));
    CHECK(!call(weight, scales, 4) && !call(weight, scales, 0));
}
