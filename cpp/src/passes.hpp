#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "leadline/affine.hpp"
#include "leadline/layout.hpp"
#include "parallel.hpp"
#include "simd.hpp"

// How elementwise passes with parameters per channel walk an array of any layout.
namespace leadline {

// Calls body(begin, end, worker) for each chunk.
template <class Body>
void for_chunks(std::int64_t size, int threads, Body&& body) {
    parallel_for(chunk_count(size, chunk_elements), threads, [&](std::int64_t task, int worker) {
        body(task * chunk_elements, std::min((task + 1) * chunk_elements, size), worker);
    });
}

// Elements handled at a time inside a chunk: with their parameters they fit the first-level cache.
inline constexpr std::int64_t piece_elements = 1024;
// Runs shorter than this are not worth a kernel of their own.
inline constexpr std::int64_t short_run = 16;

// A run is a contiguous piece of one channel. Calls body(channel, begin, length) for each in [begin, end).
template <class Body>
void for_runs(const Layout& layout, std::int64_t begin, std::int64_t end, Body&& body) {
    if (begin >= end) return;
    std::int64_t channel = begin / layout.inner % layout.channels, row_end = (begin / layout.inner + 1) * layout.inner;
    while (begin < end) {
        const std::int64_t stop = std::min({row_end, end, begin + piece_elements});
        body(channel, begin, stop - begin);
        begin = stop;
        if (begin == row_end) {
            row_end += layout.inner;
            if (++channel == layout.channels) channel = 0;
        }
    }
}

// A layout whose channels alternate every few elements is handled with the parameters written out along the array
// for one period; short periods are repeated, so that the loops stay long.
inline bool alternates(const Layout& layout) {
    return layout.outer > 1 && layout.channels > 1 && layout.inner > 0 && layout.inner < short_run;
}
inline std::int64_t period_of(const Layout& layout) {
    const std::int64_t once = layout.channels * layout.inner;
    return once * std::max<std::int64_t>(1, std::min(piece_elements / once, layout.outer));
}
template <class T>
std::vector<T> written_out(const Layout& layout, std::span<const T> values) {
    std::vector<T> out(static_cast<std::size_t>(period_of(layout)));
    for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = values[i / static_cast<std::size_t>(layout.inner) % static_cast<std::size_t>(layout.channels)];
    return out;
}
// Calls body(position in the period, begin, length).
template <class Body>
void for_periods(std::int64_t period, std::int64_t begin, std::int64_t end, Body&& body) {
    while (begin < end) {
        const std::int64_t position = begin % period;
        const std::int64_t length = std::min({period - position, end - begin, piece_elements});
        body(position, begin, length);
        begin += length;
    }
}

// One kernel, for a parameter that is constant over the run or alternates along it.
struct Same {
    float value;
    float operator[](std::int64_t) const { return value; }
};

// Where a piece is written: to the array itself or, for an array larger than the caches, to a buffer that is then
// streamed.
class Output {
   public:
    Output(std::span<float> out, bool in_place)
        : out_(out.data()), stream_(!in_place && static_cast<std::int64_t>(out.size_bytes()) > simd::stream_bytes) {}
    ~Output() {
        if (stream_) simd::fence();
    }
    Output(const Output&) = delete;

    template <class Write>
    auto operator()(std::int64_t from, std::int64_t n, Write&& write) {
        if (!stream_) return write(out_ + from);
        struct Flush {
            Output& self;
            std::int64_t from, n;
            ~Flush() { simd::stream(self.buffer_, n, self.out_ + from); }
        } flush{*this, from, n};
        return write(static_cast<float*>(buffer_));
    }

   private:
    float* out_;
    bool stream_;
    alignas(64) float buffer_[piece_elements];
};

}  // namespace leadline

namespace leadline::affine {

// The parameters of an alternating layout, written out over one period.
struct Parameters {
    std::vector<float> scale, lowest, highest, zero;
    Parameters(const Layout& layout, std::span<const float> scales, std::span<const std::int32_t> zeros,
               const Scheme& scheme)
        : scale(written_out(layout, scales)) {
        for (const std::int32_t z : written_out(layout, zeros)) {
            const Steps steps({1.0f, z}, scheme);
            lowest.push_back(steps.lowest), highest.push_back(steps.highest), zero.push_back(static_cast<float>(z));
        }
    }
};

// Returns whether there was no NaN.
template <class Parameter>
bool fake_run(const float* x, std::int64_t n, Parameter scale, Parameter lowest, Parameter highest, float* out) {
    std::int32_t nan = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        nan |= x[i] != x[i];
        // + 0.0f turns -0.0 into 0.0, as going through integers does
        out[i] = (nearest_step(x[i], scale[i], lowest[i], highest[i]) + 0.0f) * scale[i];
    }
    return nan == 0;
}

}  // namespace leadline::affine
