#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel.hpp"
#include "simd.hpp"

// Products of a slab of samples with itself: float products, added to double. Samples are packed into panels of
// neighbouring features, one sample after another, so that both factors of a product are read in order.
namespace leadline::gram {

inline constexpr std::int64_t panel = 48;          // features of a panel
inline constexpr std::int64_t square = 4 * panel;  // side of the squares that the matrix is cut into: a task each
inline constexpr std::int64_t block_samples = 64;  // of two panels that are multiplied within the first-level cache

// Two panels and where their product goes: c (panel x panel) += a^T b, of which the first `height` rows and `width`
// columns are wanted, and nothing below the diagonal where the panels are one. Each entry is summed sample by sample, so
// that all kernels give the same bits, but for the rounding between product and sum that FMA leaves out.
struct PanelProduct {
    const float *a, *b;
    std::int64_t samples, height, width;
    float* c;
    bool same() const { return a == b; }
};

inline void multiply(const PanelProduct& p) {
    using Lanes = simd::Register<float>;
    constexpr int lanes = simd::register_lanes, rows = 4, across = 3;
    static_assert(panel % rows == 0 && panel % (across * lanes) == 0);
    for (std::int64_t j = 0; j < p.width; j += across * lanes) {
        const std::int64_t height = p.same() ? std::min<std::int64_t>(p.height, j + across * lanes) : p.height;
        for (std::int64_t i = 0; i < height; i += rows) {
            float* to = p.c + i * panel + j;
            Lanes sums[rows][across];
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < across; ++v) sums[r][v] = simd::load<Lanes>(to + r * panel + v * lanes);
            const float *left = p.a + i, *right = p.b + j;
            for (std::int64_t k = 0; k < p.samples; ++k, left += panel, right += panel) {
                Lanes factors[across];
#pragma GCC unroll 4
                for (int v = 0; v < across; ++v) factors[v] = simd::load<Lanes>(right + v * lanes);
#pragma GCC unroll 4
                for (int r = 0; r < rows; ++r) {
                    const auto factor = simd::fill<Lanes>(left[r]);
#pragma GCC unroll 4
                    for (int v = 0; v < across; ++v)
                        sums[r][v] = simd::multiply_add(factor, factors[v], sums[r][v]);
                }
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < across; ++v) simd::store(to + r * panel + v * lanes, sums[r][v]);
        }
    }
}

#if defined(__FMA__)
// The same for processors with AVX-512, whose registers are twice as long, and twice as many: eight rows from i on, and
// columns from j on.
template <int across>
[[gnu::target("avx512f")]] void multiply_rows(const PanelProduct& p, std::int64_t i, std::int64_t j) {
    constexpr int rows = 8;
    float* to = p.c + i * panel + j;
    __m512 sums[rows][across];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < across; ++v) sums[r][v] = _mm512_loadu_ps(to + r * panel + v * 16);
    const float *left = p.a + i, *right = p.b + j;
    for (std::int64_t k = 0; k < p.samples; ++k, left += panel, right += panel) {
        __m512 factors[across];
#pragma GCC unroll 4
        for (int v = 0; v < across; ++v) factors[v] = _mm512_loadu_ps(right + v * 16);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const __m512 factor = _mm512_set1_ps(left[r]);
#pragma GCC unroll 4
            for (int v = 0; v < across; ++v) sums[r][v] = _mm512_fmadd_ps(factor, factors[v], sums[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < across; ++v) _mm512_storeu_ps(to + r * panel + v * 16, sums[r][v]);
}
inline void multiply_512(const PanelProduct& p) {
    for (std::int64_t i = 0; i < p.height; i += 8) {
        const std::int64_t j = p.same() ? i / 16 * 16 : 0, left = p.width - j;
        left > 32 ? multiply_rows<3>(p, i, j) : left > 16 ? multiply_rows<2>(p, i, j) : multiply_rows<1>(p, i, j);
    }
}
inline void multiply_fastest(const PanelProduct& p) {
    static const bool wide = __builtin_cpu_supports("avx512f");
    wide ? multiply_512(p) : multiply(p);
}
#else
inline void multiply_fastest(const PanelProduct& p) { multiply(p); }
#endif

// The squares of the upper triangle, row by row.
struct UpperSquares {
    std::int64_t side;
    explicit UpperSquares(std::int64_t features) : side(chunk_count(features, square)) {}
    std::int64_t count() const { return side * (side + 1) / 2; }
    std::pair<std::int64_t, std::int64_t> at(std::int64_t index) const {
        std::int64_t row = 0;
        while (index >= side - row) index -= side - row, ++row;
        return {row * square, (row + index) * square};
    }
};

class Slab {
   public:
    void resize(std::int64_t features, std::int64_t samples) {
        features_ = features, samples_ = samples;
        values_.resize(static_cast<std::size_t>(chunk_count(features, panel) * panel * samples));
    }
    std::int64_t samples() const { return samples_; }

    // Panels of features [first, last), from rows of `stride` values, less the pivot. `first` begins a panel.
    void pack_rows(const float* rows, std::int64_t stride, const float* pivot, std::int64_t first, std::int64_t last) {
        for (std::int64_t s = 0; s < samples_; ++s, rows += stride)
            for (std::int64_t f = first; f < last; f += panel) {
                float* to = at(f) + s * panel;
                if (last - f >= panel) {
                    for (std::int64_t i = 0; i < panel; ++i) to[i] = rows[f + i] - pivot[f + i];
                } else {
                    for (std::int64_t i = 0; i < last - f; ++i) to[i] = rows[f + i] - pivot[f + i];
                    std::fill(to + (last - f), to + panel, 0.0f);
                }
            }
    }

    // The panel that begins with feature `first`, from one run of samples for each of its features, less the pivots.
    void pack_runs(const std::array<const float*, panel>& runs, const std::array<float, panel>& pivot,
                   std::int64_t first) {
        constexpr int lanes = simd::wide_lanes<float>;
        using Lanes = simd::Wide<float>;
        const std::int64_t whole = samples_ / lanes * lanes, count = std::min(panel, features_ - first);
        float* to = at(first);
        for (std::int64_t f = 0; f < panel; f += lanes)
            for (std::int64_t s = 0; s < whole; s += lanes) {
                Lanes block[lanes];
#pragma GCC unroll 8
                for (int k = 0; k < lanes; ++k)
                    block[k] = f + k < count ? simd::load<Lanes>(runs[f + k] + s) - pivot[f + k] : Lanes{};
                simd::transpose(block);
#pragma GCC unroll 8
                for (int k = 0; k < lanes; ++k) simd::store(to + (s + k) * panel + f, block[k]);
            }
        for (std::int64_t s = whole; s < samples_; ++s)
            for (std::int64_t f = 0; f < panel; ++f) to[s * panel + f] = f < count ? runs[f][s] - pivot[f] : 0.0f;
    }

    // second[i0 : i0 + square, j0 : j0 + square] += what the panels there give, their upper triangle where i0 = j0.
    void add_square(std::int64_t i0, std::int64_t j0, double* second) const {
        thread_local std::vector<float> product(square * square);
        const std::int64_t rows = std::min(square, features_ - i0), columns = std::min(square, features_ - j0);
        std::fill(product.begin(), product.end(), 0.0f);
        for (std::int64_t s = 0; s < samples_; s += block_samples)
            each_pair(i0, j0, rows, columns, [&](std::int64_t i, std::int64_t j) {
                multiply_fastest({at(i0 + i) + s * panel, at(j0 + j) + s * panel, std::min(block_samples, samples_ - s),
                                  std::min(panel, rows - i), std::min(panel, columns - j), tile(product, i, j)});
            });
        each_pair(i0, j0, rows, columns, [&](std::int64_t i, std::int64_t j) {
            const float* from = tile(product, i, j);
            const std::int64_t width = std::min(panel, columns - j);
            for (std::int64_t r = 0; r < std::min(panel, rows - i); ++r) {
                double* to = second + (i0 + i + r) * features_ + j0 + j;
                for (std::int64_t c = 0; c < width; ++c) to[c] += static_cast<double>(from[r * panel + c]);
            }
        });
    }

   private:
    float* at(std::int64_t feature) { return &values_[feature * samples_]; }
    const float* at(std::int64_t feature) const { return &values_[feature * samples_]; }
    static float* tile(std::vector<float>& product, std::int64_t i, std::int64_t j) {
        return &product[i * square + j * panel];
    }
    template <class Body>
    static void each_pair(std::int64_t i0, std::int64_t j0, std::int64_t rows, std::int64_t columns, Body&& body) {
        for (std::int64_t i = 0; i < rows; i += panel)
            for (std::int64_t j = i0 == j0 ? i : 0; j < columns; j += panel) body(i, j);
    }

    std::vector<float> values_;
    std::int64_t features_ = 0, samples_ = 0;
};

}  // namespace leadline::gram
