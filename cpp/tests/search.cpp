#include "leadline/search.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "testing.hpp"

using namespace leadline;

TEST(searches_on_every_float) {
    const float huge = std::numeric_limits<float>::max(), tiny = std::numeric_limits<float>::denorm_min();
    const std::vector<std::vector<float>> data = {
        {}, {0.0f}, {1.0f}, {-huge, huge}, {tiny, -tiny}, {huge}, {1e-30f, 1e30f}, {1.0f, 1.0f, 2.0f}, normal(5000)};
    using observers::Method;
    for (const auto& x : data) {
        observers::Histogram h(1);
        CHECK(h.update(x, {1, 1, static_cast<std::int64_t>(x.size())}, 1));
        for (Method method : {Method::minmax, Method::percentile, Method::entropy, Method::lp, Method::octav})
            for (const affine::Scheme& scheme : {affine::Scheme{0, 255, 128, false}, affine::Scheme{-8, 7, 0, true},
                                                 affine::Scheme{0, 65535, 32768, true}, affine::Scheme{0, 3, 2, false}})
                for (double p : {2.0, 2.4}) {
                    const observers::Range range = observers::search(h.channels[0], scheme, {method, 99.0, p, 3.0});
                    CHECK(range.lo <= 0.0f && range.hi >= 0.0f && std::isfinite(range.lo) && std::isfinite(range.hi));
                    if (!x.empty())
                        CHECK(range.lo >= std::fmin(h.channels[0].lo, 0.0f) &&
                              range.hi <= std::fmax(h.channels[0].hi, 0.0f));
                }
    }
}

namespace {

observers::Range octav(const std::vector<float>& x, const affine::Scheme& scheme) {
    observers::Histogram histogram(1);
    CHECK(histogram.update(x, {1, 1, static_cast<std::int64_t>(x.size())}, 1));
    observers::Search search;
    search.method = observers::Method::octav;
    return observers::search(histogram.channels[0], scheme, search);
}

bool near(float value, double wanted, double relative) {
    return std::fabs(value - wanted) <= relative * std::fabs(wanted);
}

}  // namespace

// OCTAV's fixed point is s = sum of |x| beyond s over (4^-b / 3 times how many lie inside, plus how many lie beyond).
// 1000 values of magnitude 1 and 10 of magnitude 8, in four bits, with s between them: 80 / (1000 / 768 + 10).
TEST(octav_of_two_magnitudes) {
    std::vector<float> x;
    for (int i = 0; i < 500; ++i) x.insert(x.end(), {1.0f, -1.0f});
    for (int i = 0; i < 5; ++i) x.insert(x.end(), {8.0f, -8.0f});
    const observers::Range range = octav(x, {-8, 7, 0, true});
    const double wanted = 80.0 / (1000.0 / 768.0 + 10.0);
    CHECK(near(range.hi, wanted, 1e-6) && near(range.lo, -wanted, 1e-6));
}

// Even over [-1, 1], of n values s n lie inside, and those beyond add up to n (1 - s^2) / 2: with c = 4^-b / 3 the fixed
// point is 1 / (1 + sqrt(2 c)).
TEST(octav_of_an_even_density) {
    std::vector<float> x;
    for (int i = 0; i < 100'000; ++i) {
        const float magnitude = (static_cast<float>(i) + 0.5f) * 1e-5f;
        x.insert(x.end(), {magnitude, -magnitude});
    }
    for (const int bits : {3, 4, 6}) {
        const std::int64_t half = std::int64_t{1} << (bits - 1);
        const observers::Range range = octav(x, {-half, half - 1, 0, true});
        CHECK(near(range.hi, 1.0 / (1.0 + std::sqrt(2.0 / 3.0 * std::pow(4.0, -bits))), 3e-4));
    }
}

// Each end of an asymmetric grid: hi (w + beyond hi) = sum beyond hi - w lo, and so for lo, with w the values inside
// over 12 levels^2. Two equations, by Cramer.
TEST(octav_of_two_ends) {
    std::vector<float> x;
    for (int i = 0; i < 1000; ++i) x.insert(x.end(), {1.0f, -0.5f});
    for (int i = 0; i < 10; ++i) x.push_back(8.0f);
    for (int i = 0; i < 5; ++i) x.push_back(-6.0f);
    const observers::Range range = octav(x, {0, 15, 8, false});
    const double w = 2000.0 / (12.0 * 256.0), determinant = (w + 10.0) * (w + 5.0) - w * w;
    CHECK(near(range.hi, (80.0 * (w + 5.0) - w * 30.0) / determinant, 1e-6));
    CHECK(near(range.lo, -(30.0 * (w + 10.0) - w * 80.0) / determinant, 1e-6));
}

// Squared errors counted on the values themselves, over 600 ranges.
TEST(mse_is_near_the_best_of_all_ranges) {
    const std::vector<float> x = normal(20'000, 5);
    const affine::Scheme scheme{-8, 7, 0, true};
    const auto squared = [&](double limit) {
        const affine::Steps steps(affine::choose(-limit, limit, scheme), scheme);
        double total = 0.0;
        for (const float v : x) {
            const double q = affine::nearest_step(v, steps.scale, steps.lowest, steps.highest);
            total += (q * steps.scale - v) * (q * steps.scale - v);
        }
        return total;
    };
    double best = HUGE_VAL;
    for (int i = 1; i <= 600; ++i) best = std::fmin(best, squared(0.01 * i));
    observers::Histogram histogram(1);
    CHECK(histogram.update(x, {1, 1, 20'000}, 1));
    observers::Search search;
    search.method = observers::Method::lp;
    const observers::Range range = observers::search(histogram.channels[0], scheme, search);
    CHECK(squared(std::fmax(-static_cast<double>(range.lo), static_cast<double>(range.hi))) <= 1.01 * best);
}
