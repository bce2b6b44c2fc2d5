#include "leadline/polishing.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "parallel.hpp"
#include "leadline/search.hpp"
#include "passes.hpp"

namespace leadline::polishing {
namespace {

// As many elements at a time as a register holds: wider vectors are compared and converted one by one.
#if defined(__AVX2__)
constexpr int width = 8;
#else
constexpr int width = 4;
#endif
using F = float __attribute__((vector_size(4 * width)));
using I = std::int32_t __attribute__((vector_size(4 * width)));
using U = std::uint32_t __attribute__((vector_size(4 * width)));

constexpr float largest = std::numeric_limits<float>::max();
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::int32_t one_bits = 0x3f800000, infinity_bits = 0x7f800000, mantissa = 0x7fffff;
constexpr std::int32_t root_bits = 0x3f3504f3;  // the square root of 1/2

F fill(float x) { return F{} + x; }
F min(F a, float b) { return a < b ? a : fill(b); }
F magnitude(F x) { return std::bit_cast<F>(std::bit_cast<U>(x) & 0x7fffffffu); }
F with_sign(F x, F of) { return std::bit_cast<F>(std::bit_cast<U>(x) | (std::bit_cast<U>(of) & 0x80000000u)); }

template <std::size_t size>
F polynomial(const float (&coefficients)[size], F x) {
    F sum = fill(coefficients[size - 1]);
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
    static F of(F x, F omega) {
        const F t = min(magnitude(x) / omega, power);
        const I exponent = (std::bit_cast<I>(t + 1.0f) - root_bits) & ~mantissa;  // k, where a float has it
        const F part = std::bit_cast<F>(one_bits - exponent), f = t * part + (part - 1.0f);
        const F y = __builtin_convertvector(exponent >> 23, F) + (f + f * polynomial(log_quotient, f));
        return omega < infinity ? with_sign(y, x) : x;
    }
    static constexpr float power = 0x1p126f;  // 2^limit
};

struct Unpolish {
    static F of(F y, F omega) {
        const F t = min(magnitude(y), limit);
        const I n = __builtin_convertvector(t + 0.25f, I);  // rounds down: t is not negative
        const F r = t - __builtin_convertvector(n, F), whole = std::bit_cast<F>((n << 23) + one_bits);
        const F x = (whole * (r + r * polynomial(exp_quotient, r)) + (whole - 1.0f)) * omega;
        return omega < infinity ? with_sign(min(x, largest), y) : y;
    }
};

F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
F take(Same parameter, std::int64_t) { return fill(parameter.value); }
F take(const float* parameter, std::int64_t i) { return load(parameter + i); }

// Returns whether all was finite. `out` may be x.
template <class Function, class Parameter>
bool run(const float* x, std::int64_t n, Parameter omega, float* out) {
    I top{};  // the largest magnitude's bits
    const auto step = [&](F v, F w) {
        const I bits = std::bit_cast<I>(magnitude(v));
        top = bits > top ? bits : top;
        return Function::of(v, w);
    };
    std::int64_t i = 0;
    for (; i + width <= n; i += width) {
        const F y = step(load(x + i), take(omega, i));
        std::memcpy(out + i, &y, sizeof y);
    }
    if (i < n) {
        F v{}, w = fill(1.0f);
        for (std::int64_t k = 0; k < n - i; ++k) v[k] = x[i + k], w[k] = omega[i + k];
        const F y = step(v, w);
        for (std::int64_t k = 0; k < n - i; ++k) out[i + k] = y[k];
    }
    std::int32_t most = 0;
    for (int k = 0; k < width; ++k) most = std::max(most, static_cast<std::int32_t>(top[k]));
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

void check(std::span<const float> x, const Layout& layout, std::span<const float> omega, std::span<float> out,
           const char* function) {
    check_layout(layout, static_cast<std::int64_t>(x.size()), static_cast<std::int64_t>(omega.size()), function);
    require(out.size() == x.size(), function, "out must have the size of x", std::to_string(out.size()));
}

template <class Function>
bool map(std::span<const float> x, const Layout& layout, std::span<const float> omega, std::span<float> out, int threads,
         const char* function) {
    check(x, layout, omega, out, function);
    if (x.empty()) return true;
    const auto periodic = alternates(layout) ? written_out(layout, omega) : std::vector<float>();
    return for_all(
        x, layout, static_cast<std::int64_t>(periodic.size()), out, threads,
        [&](std::int64_t at, const float* in, std::int64_t n, float* to) {
            return run<Function, const float*>(in, n, &periodic[at], to);
        },
        [&](std::int64_t c, const float* in, std::int64_t n, float* to) {
            return run<Function, Same>(in, n, {omega[c]}, to);
        });
}

// What an element becomes, block by block: the three steps meet in the first-level cache.
template <class Parameter>
bool fake_run(const float* x, std::int64_t n, Parameter omega, Parameter scale, Parameter lowest, Parameter highest,
              float* out) {
    alignas(64) float block[block_elements];
    const bool finite = run<Polish>(x, n, omega, block);
    affine::fake_run(block, n, scale, lowest, highest, block);
    run<Unpolish>(block, n, omega, out);
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
    check(x, layout, omega, out, "fake_quantize_polished");
    require(scale.size() == omega.size() && zero_point.size() == omega.size(), "fake_quantize_polished",
            "omega, scale and zero_point must have one size", std::to_string(scale.size()));
    if (x.empty()) return true;
    const bool alternating = alternates(layout);
    const auto periodic = alternating ? written_out(layout, omega) : std::vector<float>();
    const affine::Parameters of(alternating ? layout : Layout{1, 1, 1}, scale, zero_point, scheme);
    return for_all(
        x, layout, static_cast<std::int64_t>(periodic.size()), out, threads,
        [&](std::int64_t at, const float* in, std::int64_t n, float* to) {
            return fake_run<const float*>(in, n, &periodic[at], &of.scale[at], &of.lowest[at], &of.highest[at], to);
        },
        [&](std::int64_t c, const float* in, std::int64_t n, float* to) {
            const affine::Steps steps({scale[c], zero_point[c]}, scheme);
            return fake_run<Same>(in, n, {omega[c]}, {steps.scale}, {steps.lowest}, {steps.highest}, to);
        });
}

namespace {

float polished(float x, float omega) { return Polish::of(fill(x), fill(omega))[0]; }

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
        run<Unpolish, Same>(values_.data(), size, {omega}, values_.data());
        run<Unpolish, Same>(edges_.data(), size, {omega}, edges_.data());
        edges_.back() = infinity;
        double total = 0.0;
        std::size_t k = 0;
        for (std::size_t i = 0; i < segments_.size(); ++i) {
            double from = segments_.lower[i];
            const double end = segments_.upper[i];
            while (static_cast<double>(edges_[k]) <= from) ++k;
            for (;;) {
                const double until = std::min(end, static_cast<double>(edges_[k])), width = until - from;
                const double off = 0.5 * (from + until) - static_cast<double>(values_[k]);
                total += segments_.density[i] * width * (off * off + width * width / 12.0);
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
        const double found = distortion(omega, grid);
        if (found < best.error) best = {omega, low, high, found, kind};
    };
    if (affine) {
        attempt(infinity, lo, hi, Kind::none);
        observers::Search search;
        search.method = observers::Method::lp;
        const observers::Found clipped = observers::search(channel, scheme, search);
        attempt(infinity, clipped.lo, clipped.hi, Kind::clip);
    }
    double percentile = -1.0;
    float quantile = 0.0f;
    for (const Bend& bend : bends) {
        if (bend.percentile != percentile) quantile = percentile_of(channel, segments, percentile = bend.percentile);
        const double product = bend.ratio * static_cast<double>(quantile);
        const auto omega = static_cast<float>(std::clamp(product, affine::smallest_scale, static_cast<double>(largest)));
        attempt(omega, polished(lo, omega), polished(hi, omega), Kind::polish);
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
