#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "leadline/layout.hpp"

// Affine grids: real = scale * (code - zero_point). This is the only place of the library that rounds.
namespace leadline::affine {

enum class Fit : std::int8_t { absmax, aimet };

struct Scheme {
    std::int64_t qmin = 0;
    std::int64_t qmax = 255;
    std::int64_t symmetric_zero = -1;  // the fixed zero point of a symmetric scheme; unused otherwise
    bool symmetric = false;
    Fit fit = Fit::absmax;
};

struct Grid {
    float scale = 1.0f;
    std::int32_t zero_point = 0;
};

// Half to even, the processor's default mode: what ONNX QuantizeLinear does.
inline float round_even(float x) { return std::nearbyint(x); }
inline double round_even(double x) { return std::nearbyint(x); }

// The smallest scale of any grid: subnormal scales would divide by zero on hardware that flushes them.
inline constexpr double smallest_scale = std::numeric_limits<float>::min();

// The grid that covers [min(lo, 0), max(hi, 0)], with real zero exactly on it. An all-zero range gets scale 1.
inline Grid choose(double lo, double hi, const Scheme& scheme) {
    lo = lo < 0.0 ? lo : 0.0;
    hi = hi > 0.0 ? hi : 0.0;
    if (lo == hi) return {1.0f, static_cast<std::int32_t>(scheme.symmetric ? scheme.symmetric_zero : 0)};
    const double below = static_cast<double>(scheme.symmetric_zero - scheme.qmin);
    const double above = static_cast<double>(scheme.qmax - scheme.symmetric_zero);
    double scale;
    if (!scheme.symmetric)
        scale = (hi - lo) / static_cast<double>(scheme.qmax - scheme.qmin);
    else if (scheme.fit == Fit::aimet)
        scale = std::fmax(-lo / below, hi / above);
    else
        scale = std::fmax(-lo, hi) / above;
    const float rounded = static_cast<float>(std::fmax(scale, smallest_scale));
    if (scheme.symmetric) return {rounded, static_cast<std::int32_t>(scheme.symmetric_zero)};
    const double zero = round_even(static_cast<double>(scheme.qmin) - lo / static_cast<double>(rounded));
    return {rounded, static_cast<std::int32_t>(std::fmin(std::fmax(zero, static_cast<double>(scheme.qmin)),
                                                         static_cast<double>(scheme.qmax)))};
}

// Codes relative to the zero point, for grids of at most 16 bits (exact in float).
struct Steps {
    float scale, lowest, highest;
    Steps(const Grid& grid, const Scheme& scheme)
        : scale(grid.scale),
          lowest(static_cast<float>(scheme.qmin - grid.zero_point)),
          highest(static_cast<float>(scheme.qmax - grid.zero_point)) {}
};

inline float nearest_step(float x, float scale, float lowest, float highest) {
    float step = round_even(x / scale);
    step = step > lowest ? step : lowest;  // also takes NaN, which the callers report
    return step < highest ? step : highest;
}

void choose(std::span<const double> lo, std::span<const double> hi, const Scheme& scheme, std::span<float> scale,
            std::span<std::int32_t> zero_point);

// Minimum and maximum per channel; 0 and 0 where a channel is empty. Returns false if any element is NaN or infinite.
bool range(std::span<const float> x, const Layout& layout, std::span<float> lo, std::span<float> hi, int threads);

// The three passes below return false if any element is NaN (its code is the lowest one).
template <class Code>
bool quantize(std::span<const float> x, const Layout& layout, std::span<const float> scale,
              std::span<const std::int32_t> zero_point, const Scheme& scheme, std::span<Code> codes, int threads);

template <class Code>
void dequantize(std::span<const Code> codes, const Layout& layout, std::span<const float> scale,
                std::span<const std::int32_t> zero_point, std::span<float> x, int threads);

// dequantize(quantize(x)), bit for bit, in one pass. `out` may be `x` itself.
bool fake_quantize(std::span<const float> x, const Layout& layout, std::span<const float> scale,
                   std::span<const std::int32_t> zero_point, const Scheme& scheme, std::span<float> out, int threads);

}  // namespace leadline::affine
