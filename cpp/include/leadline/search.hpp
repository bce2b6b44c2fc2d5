#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "leadline/affine.hpp"
#include "leadline/observers.hpp"

// Ranges searched on the histogram after the data has gone. Every range lies inside the observed one and contains zero.
namespace leadline::observers {

enum class Method : std::int8_t { minmax, percentile, entropy, lp, octav };

struct Search {
    Method method = Method::minmax;
    double percentile = 99.999;
    double p = 2.0;      // lp: the power of the error
    double gamma = 1.0;  // lp: what clipping weighs against rounding
};

struct Range {
    float lo = 0.0f, hi = 0.0f;
};

// A bucket as the searches see it: `count` elements spread evenly over [lower, upper], an interval placed so that it has
// the bucket's exact mean and variance. Sorted by value; exact zeros are left out, since every grid represents them.
struct Segments {
    std::vector<double> lower, upper, count, mean;
    std::vector<double> density;  // count / (upper - lower)
    // Sums over the segments before the i-th of: count, |x|^p.
    std::vector<double> mass, power;
    double p;

    explicit Segments(const Channel& channel, double p = 2.0);
    std::size_t size() const { return count.size(); }
    // The segments that lie wholly in (-reach, reach): first, and past the last. About half do where reach is the
    // half step of an 8-bit grid, and code zero stands for them all, so the costs take their sums from above.
    std::pair<std::size_t, std::size_t> central(double reach) const;
};

// Sum over the elements of |x - nearest grid value|^p, where elements beyond the grid weigh gamma times as much; the
// power is the segments' own.
double lp_cost(const Segments& segments, const affine::Grid& grid, const affine::Scheme& scheme, double gamma);

// The density as entropy sees it: flat in each of 2048 bins between zero and the greatest magnitude, on either side, as
// TensorRT's calibration has it. Finer bins would take each level of a picture, and softmax's smallest values, for
// worth any amount of clipping.
struct Density {
    static constexpr int bins_a_side = 2048;
    double bin_size;
    // Sums over the bins before the i-th of: count, size where there is a count, count * log density.
    std::vector<double> mass, support, entropy;

    Density(const Channel& channel, const Segments& segments);
    struct Below {
        double mass, support, entropy;
    };
    Below below(double x) const;
};

// Kullback-Leibler divergence of the quantised density from the observed one (see search.cpp).
double entropy_cost(const Density& density, const affine::Grid& grid, const affine::Scheme& scheme);

Range search(const Channel& channel, const affine::Scheme& scheme, const Search& search);

void search(const Histogram& histogram, const affine::Scheme& scheme, const Search& search, std::span<float> lo,
            std::span<float> hi, int threads);

}  // namespace leadline::observers
