#pragma once
#include <cstdint>
#include <span>

#include "leadline/affine.hpp"
#include "leadline/layout.hpp"
#include "leadline/observers.hpp"

// LogNP: y = sign(x) log2(1 + |x| / omega), the logarithm that bends at omega, and quantisation of y instead of x.
// omega is positive, one per channel; infinity: the channel is never bent, so y = x.
namespace leadline::polishing {

// |x| / omega beyond 2^limit counts as 2^limit, and |y| beyond limit as limit; nothing overflows.
inline constexpr float limit = 126.0f;

// Each pass returns false if an element is NaN or infinite. `out` is x itself or apart from it.
bool polish(std::span<const float> x, const Layout& layout, std::span<const float> omega, std::span<float> out,
            int threads);

// The inverse: x = sign(y) omega (2^|y| - 1).
bool unpolish(std::span<const float> y, const Layout& layout, std::span<const float> omega, std::span<float> out,
              int threads);

// unpolish(affine::fake_quantize(polish(x))), bit for bit, in one pass. The scheme has at most 16 bits.
bool fake_quantize(std::span<const float> x, const Layout& layout, std::span<const float> omega,
                   std::span<const float> scale, std::span<const std::int32_t> zero_point,
                   const affine::Scheme& scheme, std::span<float> out, int threads);

enum class Kind : std::int8_t { none, clip, polish };

// The range to quantise after polishing with omega, and the sum of squared errors that is then predicted.
struct Choice {
    float omega, lo, hi;
    double error;
    Kind kind;
};

// A bend: `ratio` times the given percentile of |x|.
struct Bend {
    double percentile, ratio;
};

// Sum over the channel's elements of the squared error of fake_quantize, predicted on its histogram.
double error(const observers::Channel& channel, float omega, const affine::Grid& grid, const affine::Scheme& scheme);

// The same for every channel of a histogram: the spans have one entry a channel.
void error(const observers::Histogram& histogram, std::span<const float> omega, std::span<const float> scale,
           std::span<const std::int32_t> zero_point, const affine::Scheme& scheme, std::span<double> out, int threads);

// The bend of least predicted error or, where `affine` allows it, no bend: the observed range (none) or that of least
// squared error (clip). Without nonzero elements: none.
Choice choose(const observers::Channel& channel, const affine::Scheme& scheme, std::span<const Bend> bends,
              bool affine);
void choose(const observers::Histogram& histogram, const affine::Scheme& scheme, std::span<const Bend> bends,
            bool affine, std::span<Choice> out, int threads);

}  // namespace leadline::polishing
