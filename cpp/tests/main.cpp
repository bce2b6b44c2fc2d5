// The C++ tests: what the sanitizers should see of the core, without Python. Each check prints its line when it fails.
#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <exception>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.hpp"
#include "leadline/affine.hpp"
#include "leadline/compensation.hpp"
#include "leadline/gram.hpp"
#include "leadline/hadamard.hpp"
#include "leadline/observers.hpp"
#include "parallel.hpp"
#include "leadline/rounding.hpp"
#include "leadline/search.hpp"

using namespace leadline;

namespace {

void parallel_rethrows_the_first_exception() {
    for (int threads : {1, 2, 3}) {
        bool caught = false;
        try {
            parallel_for(100, threads, [](std::int64_t task, int) {
                if (task % 7 == 3) throw std::invalid_argument("injected");
            });
        } catch (const std::invalid_argument&) {
            caught = true;
        }
        CHECK(caught);
    }
    std::vector<int> seen(1000);
    parallel_for(1000, 3, [&](std::int64_t task, int worker) {
        seen[static_cast<std::size_t>(task)] = 1 + worker;
    });
    for (int worker : seen) CHECK(worker >= 1 && worker <= 3);
    parallel_for(0, 4, [](std::int64_t, int) { CHECK(false); });
}

void affine_in_every_layout() {
    for (const Layout& layout : layouts)
        for (int threads : {1, 3}) {
            const auto x = normal(static_cast<std::size_t>(layout.size()));
            const auto channels = static_cast<std::size_t>(layout.channels);
            std::vector<float> lo(channels), hi(channels), scale(channels), out(x.size()), real(x.size());
            std::vector<std::int32_t> zero(channels);
            CHECK(affine::range(x, layout, lo, hi, threads));
            const affine::Scheme scheme{-128, 127, 0, false, affine::Fit::absmax};
            const std::vector<double> low(lo.begin(), lo.end()), high(hi.begin(), hi.end());
            affine::choose(low, high, scheme, scale, zero);
            std::vector<std::int8_t> codes(x.size());
            CHECK(affine::quantize<std::int8_t>(x, layout, scale, zero, scheme, codes, threads));
            affine::dequantize<std::int8_t>(codes, layout, scale, zero, real, threads);
            CHECK(affine::fake_quantize(x, layout, scale, zero, scheme, out, threads));
            CHECK(real == out);
            for (std::size_t i = 0; i < x.size(); ++i) {
                const auto c = i / static_cast<std::size_t>(layout.inner) % channels;
                CHECK(x[i] >= lo[c] && x[i] <= hi[c] && std::fabs(out[i] - x[i]) <= 0.51f * scale[c]);
            }
        }
}

void affine_extremes() {
    const float huge = std::numeric_limits<float>::max(), tiny = std::numeric_limits<float>::denorm_min();
    for (int bits = 2; bits <= 16; ++bits) {
        const affine::Scheme scheme{0, (std::int64_t{1} << bits) - 1, std::int64_t{1} << (bits - 1), false};
        for (auto [lo, hi] : {std::pair{-huge, huge}, {0.0f, tiny}, {-tiny, 0.0f}, {0.0f, 0.0f}, {-1.0f, huge}}) {
            const affine::Grid grid = affine::choose(static_cast<double>(lo), static_cast<double>(hi), scheme);
            CHECK(grid.scale > 0.0f && std::isfinite(grid.scale));
            CHECK(grid.zero_point >= scheme.qmin && grid.zero_point <= scheme.qmax);
        }
    }
    CHECK(affine::round_even(0.5f) == 0.0f && affine::round_even(1.5f) == 2.0f && affine::round_even(-2.5) == -2.0);
    std::vector<float> x{0.0f, std::numeric_limits<float>::quiet_NaN(), 1.0f}, lo(1), hi(1);
    CHECK(!affine::range(x, {1, 1, 3}, lo, hi, 1));
    x.assign(3000, 1.0f), x[2999] = -std::numeric_limits<float>::infinity();
    CHECK(!affine::range(x, {1, 1, 3000}, lo, hi, 2));
    CHECK(refused([&] { affine::range(x, {1, 1, 2999}, lo, hi, 1); }, "[range_of] layout must cover the array"));
    CHECK(refused([&] { affine::range(x, {1, 2, 1500}, lo, hi, 1); }, "layout must match the parameters"));
}

void histogram_counts_and_merges() {
    for (const Layout& layout : layouts) {
        const auto x = normal(static_cast<std::size_t>(layout.size()), 3);
        observers::Histogram one(layout.channels), three(layout.channels), halves(layout.channels);
        CHECK(one.update(x, layout, 1) && three.update(x, layout, 3));
        if (layout.outer % 2 == 0) {
            const Layout half{layout.outer / 2, layout.channels, layout.inner};
            const std::span<const float> all(x);
            observers::Histogram second(layout.channels);
            CHECK(halves.update(all.subspan(all.size() / 2), half, 2));
            CHECK(second.update(all.first(all.size() / 2), half, 1));
            halves.merge(second);
        } else {
            halves.merge(one);
        }
        for (std::size_t c = 0; c < one.channels.size(); ++c)
            for (const observers::Histogram* other : {&three, &halves}) {
                const auto &a = one.channels[c], &b = other->channels[c];
                CHECK(a.count == b.count && a.zeros == b.zeros && a.lo == b.lo && a.hi == b.hi);
                CHECK(a.sum() == b.sum() && a.sum_sq() == b.sum_sq());
            }
    }
    observers::Histogram h(1);
    std::vector<float> x = normal(300'000);
    x[200'000] = std::numeric_limits<float>::quiet_NaN();
    CHECK(!h.update(x, {1, 1, 300'000}, 2) && h.channels[0].count == 0);
    x[200'000] = 0.0f;
    CHECK(h.update(x, {1, 1, 300'000}, 2) && h.channels[0].count == 300'000 && h.channels[0].zeros == 1);
    CHECK(refused([&] { h.merge(observers::Histogram(2)); }, "same number of channels"));
}

void searches_on_every_float() {
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
                    const observers::Range found = observers::search(h.channels[0], scheme, {method, 99.0, p, 3.0});
                    CHECK(found.lo <= 0.0f && found.hi >= 0.0f && std::isfinite(found.lo) && std::isfinite(found.hi));
                    if (!x.empty())
                        CHECK(found.lo >= std::fmin(h.channels[0].lo, 0.0f) &&
                              found.hi <= std::fmax(h.channels[0].hi, 0.0f));
                }
    }
}

void gram_of_rows_and_patches() {
    for (auto [rows, features] : {std::pair<std::int64_t, std::int64_t>{0, 3}, {1, 1}, {1030, 7}, {5, 200}, {33, 400}}) {
        const auto x = normal(static_cast<std::size_t>(rows * features));
        const auto n = static_cast<std::size_t>(features);
        std::vector<double> sum(n), second(n * n), sum3(n), second3(n * n);
        CHECK(gram::update(x, rows, features, sum, second, 1) && gram::update(x, rows, features, sum3, second3, 3));
        gram::mirror(second, 1, features, 2), gram::mirror(second3, 1, features, 1);
        CHECK(sum == sum3 && second == second3);
        for (std::size_t i = 0; i < n; i += 3)
            for (std::size_t j = 0; j < n; j += 5) {
                double expected = 0.0;
                for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r)
                    expected += static_cast<double>(x[r * n + i]) * static_cast<double>(x[r * n + j]);
                CHECK(std::fabs(expected - second[i * n + j]) <= 1e-5 * (1.0 + 3.0 * static_cast<double>(rows)));
            }
    }
    // batch, channels, height, width, groups, kernel, stride, dilation, pads (top, left, bottom, right)
    for (const gram::Conv& conv : {gram::Conv{2, 3, 9, 7, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1},
                                   gram::Conv{1, 1, 8, 8, 5, 3, 3, 2, 1, 1, 2, 0, 2, 1, 0},
                                   gram::Conv{1, 2, 1, 1, 2, 1, 1, 5, 5, 1, 1, 3, 3, 3, 3},
                                   gram::Conv{1, 1, 2, 2, 1, 5, 5, 1, 1, 1, 1, 0, 0, 0, 0}}) {
        const auto x = normal(static_cast<std::size_t>(conv.batch * conv.groups * conv.channels * conv.height * conv.width));
        const auto n = static_cast<std::size_t>(conv.groups * conv.features());
        std::vector<double> sum(n), second(n * static_cast<std::size_t>(conv.features())), other(second), total(sum);
        CHECK(gram::update_conv(x, conv, sum, second, 1) && gram::update_conv(x, conv, total, other, 3));
        CHECK(sum == total && second == other);
    }
    std::vector<float> bad{1.0f, std::numeric_limits<float>::infinity()};
    std::vector<double> sum(2), second(4);
    CHECK(!gram::update(bad, 1, 2, sum, second, 1) && sum[0] == 0.0 && second[0] == 0.0);
    CHECK(refused([&] { gram::update(bad, 2, 2, sum, second, 1); }, "number of features"));
}

// Every solver on every shape, one thread and three: codes on the grid, the same, and no worse than they began.
void rounding_in_every_shape() {
    using namespace rounding;
    for (auto [rows, features, groups, blocks] :
         {std::array<std::int64_t, 4>{1, 1, 1, 1}, {3, 130, 1, 1}, {70, 65, 1, 5}, {12, 9, 12, 1}, {34, 8, 2, 4}}) {
        const auto weight = normal(static_cast<std::size_t>(rows * features));
        const auto x = normal(static_cast<std::size_t>(groups * 200 * features));
        std::vector<double> gram(static_cast<std::size_t>(groups * features * features), 0.0);
        for (std::int64_t g = 0; g < groups; ++g)
            for (std::int64_t s = 0; s < 200; ++s)
                for (std::int64_t i = 1; i < features; ++i)  // the first input is dead
                    for (std::int64_t j = 1; j < features; ++j)
                        gram[(g * features + i) * features + j] +=
                            static_cast<double>(x[(g * 200 + s) * features + i]) * x[(g * 200 + s) * features + j] / 200;
        const std::vector<float> scale(static_cast<std::size_t>(rows * blocks), 0.3f);
        const std::vector<std::int32_t> zero(scale.size(), 1);
        const Problem problem{weight, gram, scale, zero, rows, features, groups, blocks, -8, 7};
        std::vector<std::int32_t> near(weight.size());
        for (std::size_t i = 0; i < near.size(); ++i)
            near[i] = static_cast<std::int32_t>(affine::nearest_step(weight[i], 0.3f, -9.0f, 6.0f)) + 1;
        std::vector<double> before(static_cast<std::size_t>(rows)), after(before);
        error(problem, near, before, 2);
        const auto outputs = normal(static_cast<std::size_t>(rows * 200));
        const Clipped clipped{x, outputs, 200, -0.5f, 1.0f};
        for (int solver = 0; solver < 5; ++solver) {
            std::vector<std::int32_t> first = near;
            for (int threads : {1, 3}) {
                std::vector<std::int32_t> codes = near;
                if (solver == 0) descend(problem, {}, codes, threads);
                if (solver == 1) descend(problem, {50, true}, codes, threads);
                if (solver == 2) gptq(problem, {}, codes, threads);
                if (solver == 3) adaround(problem, {40}, codes, threads);
                if (solver == 4) adaround(problem, {40}, codes, threads, &clipped);
                CHECK(std::all_of(codes.begin(), codes.end(), [](std::int32_t c) { return c >= -8 && c <= 7; }));
                if (threads == 1) first = codes;
                CHECK(codes == first);
                error(problem, codes, after, threads);
                for (std::size_t r = 0; solver < 2 && r < after.size(); ++r) CHECK(after[r] <= before[r] + 1e-9);
            }
        }
        CHECK(refused([&] { error(problem, near, std::span(after).first(0), 1); }, "out must hold"));
        std::vector<double> fisher(static_cast<std::size_t>(rows * rows), 0.2);
        for (std::int64_t r = 1; r < rows; ++r) fisher[r * rows + r] = 1.0;
        fisher[0] = 0.0;
        if (groups == 1) {
            std::vector<std::int32_t> codes = near;
            descend_coupled(problem, {}, fisher, codes);
            CHECK(std::all_of(codes.begin(), codes.end(), [](std::int32_t c) { return c >= -8 && c <= 7; }));
            CHECK(refused([&] { descend_coupled(problem, {}, std::span(fisher).first(0), codes); }, "rows x rows"));
        } else {
            CHECK(refused([&] { descend_coupled(problem, {}, fisher, near); }, "one group"));
        }
        const Clipped few{x, outputs, 199, 0.0f, 1.0f};
        CHECK(refused([&] { adaround(problem, {}, near, 1, &few); }, "samples must fit"));
        std::vector<float> out(weight.size());
        const auto found = compensation::compensate(weight, gram, gram, rows, features, groups, 0.01, out, 2);
        CHECK(found.damping >= 0.01 && found.rank < features);
        for (std::size_t i = 0; i < out.size(); ++i) CHECK(std::fabs(out[i] - weight[i]) < 1e-4f);
    }
    const std::vector<float> none;
    std::vector<std::int32_t> codes;
    CHECK(refused([&] { descend({none, {}, none, codes, 1, 2, 1, 1, 0, 1}, {}, codes, 1); }, "must fit each other"));
}

template <class T>
void hadamard_in_every_layout() {
    using namespace hadamard;
    const std::vector<std::int8_t> regular = {-1, 1, 1, 1, 1, -1, 1, 1, 1, 1, -1, 1, 1, 1, 1, -1};
    for (std::int64_t doublings = 0; doublings < 7; ++doublings)
        for (std::int64_t blocks : {1, 3})
            for (bool based : {false, true})
                for (std::int64_t inner : {1, 3, 8, 19}) {
                    Plan plan;
                    plan.copies = blocks, plan.doublings = doublings;
                    if (based) plan.bases.push_back(base(regular, 4));
                    const std::int64_t n = plan.size();
                    const auto given = normal(static_cast<std::size_t>(11 * n * inner));
                    const std::vector<T> x(given.begin(), given.end());
                    const std::vector<T> scale(static_cast<std::size_t>(n), T(1 / std::sqrt(double(plan.order()))));
                    const std::vector<T> one(static_cast<std::size_t>(n), T{1});
                    std::vector<std::int32_t> back(static_cast<std::size_t>(n));
                    for (std::int64_t i = 0; i < n; ++i) back[i] = static_cast<std::int32_t>(n - 1 - i);
                    std::vector<T> y(x.size()), again(x.size());
                    // The matrix is symmetric: twice is nothing, whatever is permuted in between and back.
                    apply<T>(plan, {scale, one, {}, back}, x, inner, y, 2);
                    apply<T>(plan, {scale, {}, back, {}}, y, inner, again, 1);
                    for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::fabs(again[i] - x[i]) < T(1e-4));
                    std::vector<T> place = x;
                    apply<T>(plan, {scale, one, {}, back}, place, inner, place, 1);
                    CHECK(place == y);
                    const std::span<const T> few(x.data(), x.size() - 1);
                    CHECK(refused([&] { apply<T>(plan, {scale, {}, {}, {}}, few, inner, y, 1); }, "whole rows"));
                    back[0] = static_cast<std::int32_t>(n);
                    CHECK(refused([&] { apply<T>(plan, {scale, {}, back, {}}, x, inner, y, 1); }, "stay inside"));
                    CHECK(refused([&] { apply<T>(plan, {{}, {}, {}, {}}, x, inner, y, 1); }, "a factor for each"));
                }
    CHECK(refused([&] { base(regular, 3); }, "square"));
}

}  // namespace

int main() {
    omp_set_num_threads(2);
    parallel_rethrows_the_first_exception();
    affine_in_every_layout();
    affine_extremes();
    histogram_counts_and_merges();
    searches_on_every_float();
    gram_of_rows_and_patches();
    rounding_in_every_shape();
    hadamard_in_every_layout<float>();
    hadamard_in_every_layout<double>();
    check_polishing();
    check_smoothing();
    std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
    return failures ? 1 : 0;
}
