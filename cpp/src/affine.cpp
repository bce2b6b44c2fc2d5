#include "leadline/affine.hpp"

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

#include "parallel.hpp"
#include "passes.hpp"
#include "simd.hpp"

namespace leadline::affine {
namespace {

struct SameZero {
    std::int32_t value;
    std::int32_t operator[](std::int64_t) const { return value; }
};

// What is done to a run, whose elements share their parameters or have their own. Returns whether there was no NaN.
template <class Code, class Parameter>
bool quantize_run(const float* x, std::int64_t n, Parameter scale, Parameter lowest, Parameter highest, Parameter zero,
                  Code* codes) {
    std::int32_t nan = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        nan |= x[i] != x[i];
        codes[i] = static_cast<Code>(
            static_cast<std::int32_t>(nearest_step(x[i], scale[i], lowest[i], highest[i]) + zero[i]));
    }
    return nan == 0;
}

template <class Code, class Zero, class Parameter>
void dequantize_run(const Code* codes, std::int64_t n, Parameter scale, Zero zero, float* x) {
    using Integer = std::conditional_t<sizeof(Code) < 4, std::int32_t, std::int64_t>;
    for (std::int64_t i = 0; i < n; ++i)
        x[i] = static_cast<float>(static_cast<Integer>(codes[i]) - static_cast<Integer>(zero[i])) * scale[i];
}

// 32-bit codes do not fit float's 24 bits: these go through double.
std::int64_t double_step(float x, float scale, std::int64_t zero, const Scheme& scheme) {
    const double step = round_even(static_cast<double>(x) / static_cast<double>(scale));
    const auto lowest = static_cast<double>(scheme.qmin - zero), highest = static_cast<double>(scheme.qmax - zero);
    return static_cast<std::int64_t>(step > lowest ? (step < highest ? step : highest) : lowest);
}

}  // namespace

void choose(std::span<const double> lo, std::span<const double> hi, const Scheme& scheme, std::span<float> scale,
            std::span<std::int32_t> zero_point) {
    require(lo.size() == hi.size() && lo.size() == scale.size() && lo.size() == zero_point.size(), "choose_grid",
            "lo, hi, scale and zero_point must have one size", std::to_string(lo.size()));
    for (std::size_t c = 0; c < lo.size(); ++c) {
        const Grid grid = choose(lo[c], hi[c], scheme);
        scale[c] = grid.scale, zero_point[c] = grid.zero_point;
    }
}

namespace {

struct Extremes {
    float lo = std::numeric_limits<float>::infinity();
    float hi = -std::numeric_limits<float>::infinity();
    void take(float x) {
        lo = x < lo ? x : lo;
        hi = x > hi ? x : hi;
    }
    // Not take(other.lo), take(other.hi): a range that saw nothing must stay out.
    void merge(const Extremes& other) {
        lo = other.lo < lo ? other.lo : lo;
        hi = other.hi > hi ? other.hi : hi;
    }
};

// Four independent pairs of accumulators keep the loop at the speed of memory.
void range_run(const float* x, std::int64_t n, Extremes& range, simd::Wide<std::int32_t>& nan) {
    using simd::min, simd::max, simd::reduce;
    using Floats = simd::Wide<float>;
    constexpr int lanes = simd::wide_lanes<float>;
    std::int64_t i = 0;
    if (n >= lanes) {
        Floats lo[4], hi[4];
        lo[0] = hi[0] = simd::load<Floats>(x);
        for (int k = 1; k < 4; ++k) lo[k] = hi[k] = lo[0];
        for (; i + 4 * lanes <= n; i += 4 * lanes) {
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                const auto v = simd::load<Floats>(x + i + k * lanes);
                lo[k] = min(v, lo[k]), hi[k] = max(v, hi[k]);
                nan |= v != v;
            }
        }
        for (; i + lanes <= n; i += lanes) {
            const auto v = simd::load<Floats>(x + i);
            lo[0] = min(v, lo[0]), hi[0] = max(v, hi[0]);
            nan |= v != v;
        }
        range.take(reduce(min(min(lo[0], lo[1]), min(lo[2], lo[3])), min<Floats>));
        range.take(reduce(max(max(hi[0], hi[1]), max(hi[2], hi[3])), max<Floats>));
    }
    for (; i < n; ++i) {
        nan[0] |= -(x[i] != x[i]);
        range.take(x[i]);
    }
}

bool range_alternating(const float* x, std::int64_t n, float* lo, float* hi) {
    int nan = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        lo[i] = x[i] < lo[i] ? x[i] : lo[i];
        hi[i] = x[i] > hi[i] ? x[i] : hi[i];
        nan |= x[i] != x[i];
    }
    return nan == 0;
}

}  // namespace

bool range(std::span<const float> x, const Layout& layout, std::span<float> lo, std::span<float> hi, int threads) {
    const auto size = static_cast<std::int64_t>(x.size());
    check_layout(layout, size, static_cast<std::int64_t>(lo.size()), "range_of");
    require(lo.size() == hi.size(), "range_of", "lo and hi must have one size", std::to_string(hi.size()));
    const bool alternating = alternates(layout);
    const std::int64_t period = alternating ? period_of(layout) : layout.channels;
    const auto workers = static_cast<std::size_t>(worker_count(chunk_count(size, chunk_elements), threads));
    // Minimum and maximum do not depend on the order: each worker keeps its own, and they are merged at the end.
    std::vector<Extremes> ranges(workers * static_cast<std::size_t>(alternating ? 0 : period));
    std::vector<float> low(alternating ? workers * static_cast<std::size_t>(period) : 0, Extremes().lo);
    std::vector<float> high(low.size(), Extremes().hi);
    std::atomic<bool> finite = true;
    for_chunks(size, threads, [&](std::int64_t begin, std::int64_t end, int worker) {
        bool good = true;
        simd::Wide<std::int32_t> nan{};
        if (alternating)
            for_periods(period, begin, end, [&](std::int64_t at, std::int64_t from, std::int64_t n) {
                good &= range_alternating(&x[from], n, &low[worker * period + at], &high[worker * period + at]);
            });
        else
            for_runs(layout, begin, end, [&](std::int64_t channel, std::int64_t from, std::int64_t n) {
                range_run(&x[from], n, ranges[worker * period + channel], nan);
            });
        if (!good || simd::any(nan)) finite = false;
    });
    std::vector<Extremes> merged(lo.size());
    for (std::size_t i = 0; i < low.size(); ++i) {
        Extremes& into = merged[i % period / layout.inner % layout.channels];
        into.merge({low[i], high[i]});
    }
    for (std::size_t i = 0; i < ranges.size(); ++i)
        merged[i % period].merge(ranges[i]);
    for (std::size_t c = 0; c < merged.size(); ++c) {
        const bool empty = size == 0 || merged[c].lo > merged[c].hi;
        lo[c] = empty ? 0.0f : merged[c].lo + 0.0f;  // one zero, whatever the order of -0.0 and 0.0
        hi[c] = empty ? 0.0f : merged[c].hi + 0.0f;
        if (!empty && !(std::isfinite(lo[c]) && std::isfinite(hi[c]))) finite = false;
    }
    return finite;
}

template <class Code>
bool quantize(std::span<const float> x, const Layout& layout, std::span<const float> scale,
              std::span<const std::int32_t> zero_point, const Scheme& scheme, std::span<Code> codes, int threads) {
    const auto size = static_cast<std::int64_t>(x.size());
    check_layout(layout, size, static_cast<std::int64_t>(scale.size()), "quantize");
    require(codes.size() == x.size() && zero_point.size() == scale.size(), "quantize", "codes must have the size of x",
            std::to_string(codes.size()));
    if (size == 0) return true;
    std::atomic<bool> clean = true;
    const bool alternating = sizeof(Code) < 4 && alternates(layout);
    const Parameters periodic(alternating ? layout : Layout{1, 1, 1}, scale, zero_point, scheme);
    for_chunks(size, threads, [&](std::int64_t begin, std::int64_t end, int) {
        bool good = true;
        if (alternating)
            for_periods(static_cast<std::int64_t>(periodic.scale.size()), begin, end,
                        [&](std::int64_t at, std::int64_t from, std::int64_t n) {
                            good &= quantize_run<Code, const float*>(
                                &x[from], n, &periodic.scale[at], &periodic.lowest[at], &periodic.highest[at],
                                &periodic.zero[at], &codes[from]);
                        });
        else
            for_runs(layout, begin, end, [&](std::int64_t c, std::int64_t from, std::int64_t n) {
                if constexpr (sizeof(Code) < 4) {
                    const Steps steps({scale[c], zero_point[c]}, scheme);
                    good &= quantize_run<Code, Same>(&x[from], n, {steps.scale}, {steps.lowest}, {steps.highest},
                                                     {static_cast<float>(zero_point[c])}, &codes[from]);
                } else {
                    for (std::int64_t i = from; i < from + n; ++i) {
                        good &= !std::isnan(x[i]);
                        const std::int64_t step = double_step(x[i], scale[c], zero_point[c], scheme);
                        codes[i] = static_cast<Code>(step + zero_point[c]);
                    }
                }
            });
        if (!good) clean = false;
    });
    return clean;
}

template <class Code>
void dequantize(std::span<const Code> codes, const Layout& layout, std::span<const float> scale,
                std::span<const std::int32_t> zero_point, std::span<float> x, int threads) {
    const auto size = static_cast<std::int64_t>(codes.size());
    check_layout(layout, size, static_cast<std::int64_t>(scale.size()), "dequantize");
    require(codes.size() == x.size() && zero_point.size() == scale.size(), "dequantize",
            "the result must have the size of codes", std::to_string(x.size()));
    if (size == 0) return;
    const bool alternating = alternates(layout);
    const auto scales = alternating ? written_out(layout, scale) : std::vector<float>();
    const auto zeros = alternating ? written_out(layout, zero_point) : std::vector<std::int32_t>();
    for_chunks(size, threads, [&](std::int64_t begin, std::int64_t end, int) {
        Output output(x, false);
        if (alternating)
            for_periods(static_cast<std::int64_t>(scales.size()), begin, end,
                        [&](std::int64_t at, std::int64_t from, std::int64_t n) {
                            output(from, n, [&](float* to) {
                                dequantize_run<Code, const std::int32_t*, const float*>(&codes[from], n, &scales[at],
                                                                                        &zeros[at], to);
                            });
                        });
        else
            for_runs(layout, begin, end, [&](std::int64_t c, std::int64_t from, std::int64_t n) {
                output(from, n, [&](float* to) {
                    dequantize_run<Code, SameZero, Same>(&codes[from], n, {scale[c]}, {zero_point[c]}, to);
                });
            });
    });
}

bool fake_quantize(std::span<const float> x, const Layout& layout, std::span<const float> scale,
                   std::span<const std::int32_t> zero_point, const Scheme& scheme, std::span<float> out, int threads) {
    const auto size = static_cast<std::int64_t>(x.size());
    check_layout(layout, size, static_cast<std::int64_t>(scale.size()), "fake_quantize");
    require(out.size() == x.size() && zero_point.size() == scale.size(), "fake_quantize", "out must have the size of x",
            std::to_string(out.size()));
    if (size == 0) return true;
    std::atomic<bool> clean = true;
    const bool doubled = scheme.qmax > (std::int64_t{1} << 16);
    const bool alternating = !doubled && alternates(layout);
    const Parameters periodic(alternating ? layout : Layout{1, 1, 1}, scale, zero_point, scheme);
    for_chunks(size, threads, [&](std::int64_t begin, std::int64_t end, int) {
        bool good = true;
        Output output(out, out.data() == x.data());
        if (alternating)
            for_periods(static_cast<std::int64_t>(periodic.scale.size()), begin, end,
                        [&](std::int64_t at, std::int64_t from, std::int64_t n) {
                            good &= output(from, n, [&](float* to) {
                                return fake_run<const float*>(&x[from], n, &periodic.scale[at], &periodic.lowest[at],
                                                              &periodic.highest[at], to);
                            });
                        });
        else
            for_runs(layout, begin, end, [&](std::int64_t c, std::int64_t from, std::int64_t n) {
                good &= output(from, n, [&](float* to) {
                    const Steps steps({scale[c], zero_point[c]}, scheme);
                    if (!doubled)
                        return fake_run<Same>(&x[from], n, {steps.scale}, {steps.lowest}, {steps.highest}, to);
                    bool fine = true;
                    for (std::int64_t i = 0; i < n; ++i) {
                        fine &= !std::isnan(x[from + i]);
                        const std::int64_t step = double_step(x[from + i], scale[c], zero_point[c], scheme);
                        to[i] = static_cast<float>(step) * scale[c];
                    }
                    return fine;
                });
            });
        if (!good) clean = false;
    });
    return clean;
}

#define LEADLINE_CODES(Code)                                                                                       \
    template bool quantize<Code>(std::span<const float>, const Layout&, std::span<const float>,                    \
                                 std::span<const std::int32_t>, const Scheme&, std::span<Code>, int);              \
    template void dequantize<Code>(std::span<const Code>, const Layout&, std::span<const float>,                   \
                                   std::span<const std::int32_t>, std::span<float>, int);
LEADLINE_CODES(std::int8_t)
LEADLINE_CODES(std::uint8_t)
LEADLINE_CODES(std::int16_t)
LEADLINE_CODES(std::uint16_t)
LEADLINE_CODES(std::int32_t)
#undef LEADLINE_CODES

}  // namespace leadline::affine
