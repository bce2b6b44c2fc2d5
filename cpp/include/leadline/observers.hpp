#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "leadline/layout.hpp"

namespace leadline::observers {

// A log-linear histogram: the bucket of a float is its sign, its exponent and the top 4 bits of its mantissa, so there
// are 16 buckets to the octave, no range to guess, and merging is exact. Within a bucket a float is linear in its 19
// remaining mantissa bits m, so the moments are kept as integers: their sums do not depend on the order, hence not on
// the threads. |x| < 2^-130, the bucket of key 0, counts as exact zero.
inline constexpr int low_bits = 19;
inline constexpr std::int32_t key_count = 4080;  // magnitude keys of the finite floats

struct Bucket {
    std::uint64_t count = 0;
    std::uint64_t first = 0;   // sum of m
    std::uint64_t second = 0;  // sum of round(m / 32)^2: exact to 2^-18 of the value, and overflows only at 2^36 counts
};

inline double lower_edge(std::int32_t key) {
    return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(key) << low_bits));
}
inline double unit(std::int32_t key) {  // what one step of m is worth
    const int exponent = key >> 4;
    return std::ldexp(1.0, (exponent > 0 ? exponent : 1) - 150);
}

// The buckets of one sign, over the window of keys seen so far.
struct Side {
    std::int32_t begin = 0;
    std::vector<Bucket> buckets;

    std::int32_t end() const { return begin + static_cast<std::int32_t>(buckets.size()); }
    Bucket* cover(std::int32_t first, std::int32_t last);  // widens the window to hold [first, last): its first bucket
};

struct Channel {
    std::uint64_t count = 0;  // of all elements
    std::uint64_t zeros = 0;
    float lo = std::numeric_limits<float>::infinity();
    float hi = -std::numeric_limits<float>::infinity();
    Side sides[2];  // [0]: positive, [1]: negative

    void merge(const Channel& other);
    double sum() const;
    double sum_sq() const;
};

struct Histogram {
    std::vector<Channel> channels;

    explicit Histogram(std::int64_t count) : channels(static_cast<std::size_t>(count)) {}
    // Counts every element, or changes nothing and returns false if one is NaN or infinite.
    bool update(std::span<const float> x, const Layout& layout, int threads);
    void merge(const Histogram& other);
};

}  // namespace leadline::observers
