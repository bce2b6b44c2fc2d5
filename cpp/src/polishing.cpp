#include "leadline/polishing.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "leadline/search.hpp"
#include "parallel.hpp"
#include "passes.hpp"
#include "simd.hpp"

namespace leadline::polishing {
namespace {

constexpr int lanes = simd::register_lanes;
using Floats = simd::Register<float>;
using Integers = simd::Register<std::int32_t>;
using Words = simd::Register<std::uint32_t>;

constexpr float largest = std::numeric_limits<float>::max();
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::int32_t one_bits = 0x3f800000, infinity_bits = 0x7f800000, mantissa = 0x7fffff;
constexpr std::int32_t root_bits = 0x3f3504f3;  // the square root of 1/2

Floats fill(float value) { return simd::fill<Floats>(value); }
Floats min(Floats a, float b) { return simd::min(a, fill(b)); }
Floats magnitude(Floats x) { return std::bit_cast<Floats>(std::bit_cast<Words>(x) & 0x7fffffffu); }
Floats with_sign(Floats x, Floats sign) {
    return std::bit_cast<Floats>(std::bit_cast<Words>(x) | (std::bit_cast<Words>(sign) & 0x80000000u));
}

template <std::size_t size>
Floats polynomial(const float (&coefficients)[size], Floats x) {
    Floats sum = fill(coefficients[size - 1]);
#pragma GCC unroll 16
    for (std::size_t i = 2; i <= size; ++i) sum = sum * x + coefficients[size - i];
    return sum;
}

// log2(1 + f) / f - 1 on [sqrt(1/2) - 1, sqrt(2) - 1] and (2^r - 1) / r - 1 on [-1/4, 3/4], minimax for the relative
// error of the whole: 2^-28 and 2^-32. Multiplied by f or r and added to it, they lose less than by the factor alone.
constexpr float log_quotient[] = {0.4426950408294594f,  -0.7213473514959879f,  0.4808982412108804f, -0.3606966499766707f,
                                  0.2885674008730283f,  -0.23961738296792548f, 0.204600735637019f,  -0.19106304139031988f,
                                  0.1861744114775627f,  -0.1099482271946173f};
constexpr float exp_quotient[] = {-0.30685281937242426f, 0.2402265043971941f,    0.055504100529450304f,
                                  0.009618248983018057f, 0.0013333362804737036f, 0.00015278906050188778f,
                                  1.775137738358617e-05f};

// The logarithm of 1 + t from t, not from the sum, so that it keeps every digit of a small t:
// 1 + t = 2^k (1 + f), and both t 2^-k and 2^-k - 1 are exact where they count.
struct Polish {
    static Floats of(Floats x, Floats omega) {
        const Floats t = min(magnitude(x) / omega, power);
        const Integers exponent = (std::bit_cast<Integers>(t + 1.0f) - root_bits) & ~mantissa;  // k, in its bits
        const Floats part = std::bit_cast<Floats>(one_bits - exponent), f = t * part + (part - 1.0f);
        const Floats y = __builtin_convertvector(exponent >> 23, Floats) + (f + f * polynomial(log_quotient, f));
        return omega < infinity ? with_sign(y, x) : x;
    }
    static constexpr float power = 0x1p126f;  // 2^limit
};

struct Unpolish {
    static Floats of(Floats y, Floats omega) {
        const Floats t = min(magnitude(y), limit);
        const Integers n = __builtin_convertvector(t + 0.25f, Integers);  // rounds down: t is not negative
        const Floats r = t - __builtin_convertvector(n, Floats);
        const Floats whole = std::bit_cast<Floats>((n << 23) + one_bits);
        const Floats x = (whole * (r + r * polynomial(exp_quotient, r)) + (whole - 1.0f)) * omega;
        return omega < infinity ? with_sign(min(x, largest), y) : y;
    }
};

Floats take(Same parameter, std::int64_t) { return fill(parameter.value); }
Floats take(const float* parameter, std::int64_t i) { return simd::load<Floats>(parameter + i); }

// Returns whether all was finite. `out` may be x.
template <class Function, class Parameter>
bool map_run(const float* x, std::int64_t n, Parameter omega, float* out) {
    Integers top{};  // the largest magnitude's bits
    const auto step = [&](Floats v, Floats w) {
        top = simd::max(std::bit_cast<Integers>(magnitude(v)), top);
        return Function::of(v, w);
    };
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes) simd::store(out + i, step(simd::load<Floats>(x + i), take(omega, i)));
    if (i < n) {
        Floats v{}, w = fill(1.0f);
        for (std::int64_t k = 0; k < n - i; ++k) v[k] = x[i + k], w[k] = omega[i + k];
        const Floats y = step(v, w);
        for (std::int64_t k = 0; k < n - i; ++k) out[i + k] = y[k];
    }
    std::int32_t most = 0;
    for (int k = 0; k < lanes; ++k) most = std::max(most, static_cast<std::int32_t>(top[k]));
    return most < infinity_bits;
}

// Calls alternating(position, from, n, to) or same(channel, from, n, to) for every run; both return whether all was well.
template <class Alternating, class Constant>
bool for_all(std::span<const float> x, const Layout& layout, std::int64_t period, std::span<float> out, int threads,
             Alternating&& alternating, Constant&& constant) {
    std::atomic<bool> clean = true;
    for_chunks(static_cast<std::int64_t>(x.size()), threads, [&](std::int64_t begin, std::int64_t end, int) {
        bool good = true;
        Output output(out, out.data() == x.data());
        const auto each = [&](auto&& call) {
            return [&](std::int64_t at, std::int64_t from, std::int64_t n) {
                good &= output(from, n, [&](float* to) { return call(at, &x[from], n, to); });
            };
        };
        if (period) for_periods(period, begin, end, each(alternating));
        else for_runs(layout, begin, end, each(constant));
        if (!good) clean = false;
    });
    return clean;
}

void require_pass(std::span<const float> x, const Layout& layout, std::span<const float> omega, std::span<float> out,
           const char* function) {
    check_layout(layout, static_cast<std::int64_t>(x.size()), static_cast<std::int64_t>(omega.size()), function);
    require(out.size() == x.size(), function, "out must have the size of x", std::to_string(out.size()));
}

template <class Function>
bool map(std::span<const float> x, const Layout& layout, std::span<const float> omega, std::span<float> out, int threads,
         const char* function) {
    require_pass(x, layout, omega, out, function);
    if (x.empty()) return true;
    const auto periodic = alternates(layout) ? written_out(layout, omega) : std::vector<float>();
    return for_all(
        x, layout, static_cast<std::int64_t>(periodic.size()), out, threads,
        [&](std::int64_t at, const float* in, std::int64_t n, float* to) {
            return map_run<Function, const float*>(in, n, &periodic[at], to);
        },
        [&](std::int64_t c, const float* in, std::int64_t n, float* to) {
            return map_run<Function, Same>(in, n, {omega[c]}, to);
        });
}

// What an element becomes, piece by piece: the three steps meet in the first-level cache.
template <class Parameter>
bool fake_run(const float* x, std::int64_t n, Parameter omega, Parameter scale, Parameter lowest, Parameter highest,
              float* out) {
    alignas(64) float polished[piece_elements];
    const bool finite = map_run<Polish>(x, n, omega, polished);
    affine::fake_run(polished, n, scale, lowest, highest, polished);
    map_run<Unpolish>(polished, n, omega, out);
    return finite;
}

}  // namespace

bool polish(std::span<const float> x, const Layout& layout, std::span<const float> omega, std::span<float> out,
            int threads) {
    return map<Polish>(x, layout, omega, out, threads, "polish");
}

bool unpolish(std::span<const float> y, const Layout& layout, std::span<const float> omega, std::span<float> out,
              int threads) {
    return map<Unpolish>(y, layout, omega, out, threads, "unpolish");
}

bool fake_quantize(std::span<const float> x, const Layout& layout, std::span<const float> omega,
                   std::span<const float> scale, std::span<const std::int32_t> zero_point,
                   const affine::Scheme& scheme, std::span<float> out, int threads) {
    require_pass(x, layout, omega, out, "fake_quantize_polished");
    require(scale.size() == omega.size() && zero_point.size() == omega.size(), "fake_quantize_polished",
            "omega, scale and zero_point must have one size", std::to_string(scale.size()));
    if (x.empty()) return true;
    const bool alternating = alternates(layout);
    const auto periodic = alternating ? written_out(layout, omega) : std::vector<float>();
    const affine::Parameters grids(alternating ? layout : Layout{1, 1, 1}, scale, zero_point, scheme);
    return for_all(
        x, layout, static_cast<std::int64_t>(periodic.size()), out, threads,
        [&](std::int64_t at, const float* in, std::int64_t n, float* to) {
            return fake_run<const float*>(in, n, &periodic[at], &grids.scale[at], &grids.lowest[at],
                                          &grids.highest[at], to);
        },
        [&](std::int64_t c, const float* in, std::int64_t n, float* to) {
            const affine::Steps steps({scale[c], zero_point[c]}, scheme);
            return fake_run<Same>(in, n, {omega[c]}, {steps.scale}, {steps.lowest}, {steps.highest}, to);
        });
}

namespace {

float polish_one(float x, float omega) { return Polish::of(fill(x), fill(omega))[0]; }

// Squared errors on segments: each is cut where the nearest code changes, and integrated piece by piece.
class Distortion {
   public:
    Distortion(const observers::Segments& segments, const affine::Scheme& scheme)
        : segments_(segments),
          scheme_(scheme),
          values_(static_cast<std::size_t>(scheme.qmax - scheme.qmin + 1)),
          edges_(values_.size()) {}

    double operator()(float omega, const affine::Grid& grid) {
        const std::size_t codes = values_.size();
        for (std::size_t k = 0; k < codes; ++k) {
            const auto step = static_cast<float>(scheme_.qmin - grid.zero_point + static_cast<std::int64_t>(k));
            values_[k] = std::clamp(step * grid.scale, -largest, largest);
            edges_[k] = std::clamp((step + 0.5f) * grid.scale, -largest, largest);
        }
        const auto size = static_cast<std::int64_t>(codes);
        map_run<Unpolish, Same>(values_.data(), size, {omega}, values_.data());
        map_run<Unpolish, Same>(edges_.data(), size, {omega}, edges_.data());
        edges_.back() = infinity;
        double total = 0.0;
        std::size_t k = 0;
        for (std::size_t i = 0; i < segments_.size(); ++i) {
            double from = segments_.lower[i];
            const double end = segments_.upper[i];
            while (static_cast<double>(edges_[k]) <= from) ++k;
            for (;;) {
                const double until = std::min(end, static_cast<double>(edges_[k])), length = until - from;
                const double off = 0.5 * (from + until) - static_cast<double>(values_[k]);
                total += segments_.density[i] * length * (off * off + length * length / 12.0);
                if (until >= end) break;
                from = until, ++k;
            }
        }
        return total;
    }

   private:
    const observers::Segments& segments_;
    const affine::Scheme& scheme_;
    std::vector<float> values_, edges_;
};

// How many elements are larger than t in magnitude.
double beyond(const observers::Segments& s, double t) {
    const std::size_t n = s.size();
    const auto above = static_cast<std::size_t>(std::upper_bound(s.upper.begin(), s.upper.end(), t) - s.upper.begin());
    const auto below =
        static_cast<std::size_t>(std::lower_bound(s.lower.begin(), s.lower.end(), -t) - s.lower.begin());
    double count = s.mass[n] - s.mass[above] + s.mass[below];
    if (above < n) count -= s.density[above] * std::max(0.0, t - s.lower[above]);
    if (below > 0) count -= s.density[below - 1] * std::max(0.0, s.upper[below - 1] + t);
    return count;
}

// The percentile of |x|; where that is zero, since most elements are, that of the nonzero ones. To the nearest float.
float percentile_of(const observers::Channel& channel, const observers::Segments& segments, double percentile) {
    const double share = 1.0 - percentile / 100.0, nonzero = segments.mass.back();
    double allowed = share * static_cast<double>(channel.count);
    if (nonzero <= allowed) allowed = share * nonzero;
    auto low = std::uint32_t{0}, high = std::bit_cast<std::uint32_t>(std::max(-channel.lo, channel.hi));
    while (high - low > 1) {
        const std::uint32_t middle = low + (high - low) / 2;
        (beyond(segments, static_cast<double>(std::bit_cast<float>(middle))) > allowed ? low : high) = middle;
    }
    return std::bit_cast<float>(high);
}

void require_channels(const observers::Histogram& histogram, std::size_t entries) {
    require(entries == histogram.channels.size(), "polishing", "there must be one entry a channel",
            std::to_string(entries));
}

}  // namespace

double error(const observers::Channel& channel, float omega, const affine::Grid& grid, const affine::Scheme& scheme) {
    return Distortion(observers::Segments(channel), scheme)(omega, grid);
}

Choice choose(const observers::Channel& channel, const affine::Scheme& scheme, std::span<const Bend> bends,
              bool affine) {
    const observers::Segments segments(channel);
    const float lo = std::fmin(channel.lo, 0.0f), hi = std::fmax(channel.hi, 0.0f);
    if (segments.size() == 0) return {infinity, lo, hi, 0.0, Kind::none};  // zeros alone
    Distortion distortion(segments, scheme);
    Choice best{infinity, lo, hi, HUGE_VAL, Kind::none};
    const auto attempt = [&](float omega, float low, float high, Kind kind) {
        const auto grid = affine::choose(static_cast<double>(low), static_cast<double>(high), scheme);
        const double predicted = distortion(omega, grid);
        if (predicted < best.error) best = {omega, low, high, predicted, kind};
    };
    if (affine) {
        attempt(infinity, lo, hi, Kind::none);
        observers::Search search;
        search.method = observers::Method::lp;
        const observers::Range clipped = observers::search(channel, scheme, search);
        attempt(infinity, clipped.lo, clipped.hi, Kind::clip);
    }
    double percentile = -1.0;
    float quantile = 0.0f;
    for (const Bend& bend : bends) {
        if (bend.percentile != percentile) quantile = percentile_of(channel, segments, percentile = bend.percentile);
        const double product = bend.ratio * static_cast<double>(quantile);
        const auto omega = static_cast<float>(std::clamp(product, affine::smallest_scale, static_cast<double>(largest)));
        attempt(omega, polish_one(lo, omega), polish_one(hi, omega), Kind::polish);
    }
    return best;
}

void error(const observers::Histogram& histogram, std::span<const float> omega, std::span<const float> scale,
           std::span<const std::int32_t> zero_point, const affine::Scheme& scheme, std::span<double> out, int threads) {
    for (const std::size_t size : {omega.size(), scale.size(), zero_point.size(), out.size()})
        require_channels(histogram, size);
    parallel_for(static_cast<std::int64_t>(out.size()), threads, [&](std::int64_t c, int) {
        out[c] = error(histogram.channels[c], omega[c], {scale[c], zero_point[c]}, scheme);
    });
}

void choose(const observers::Histogram& histogram, const affine::Scheme& scheme, std::span<const Bend> bends,
            bool affine, std::span<Choice> out, int threads) {
    require_channels(histogram, out.size());
    parallel_for(static_cast<std::int64_t>(out.size()), threads, [&](std::int64_t c, int) {
        out[c] = choose(histogram.channels[c], scheme, bends, affine);
    });
}

}  // namespace leadline::polishing
