#pragma once
#if defined(__FMA__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "lanes.hpp"

// Registers of floats or doubles, and what happens among the lanes of one or of a square of them.
namespace leadline::wide {

// A register of values side by side, one AVX register or two SSE ones.
template <class T>
struct Wide;
template <>
struct Wide<float> {
    using V = lanes::F;
    static constexpr int log = 3;
};
template <>
struct Wide<double> {
    using V = double __attribute__((vector_size(32)));
    static constexpr int log = 2;
};
template <class T>
using V = typename Wide<T>::V;
template <class T>
constexpr std::int64_t width = std::int64_t{1} << Wide<T>::log;

template <class T>
V<T> load(const T* p) {
    V<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class T>
void store(T* p, const V<T>& v) {
    std::memcpy(p, &v, sizeof v);
}

// y + sign x for signs of +1 and -1: a product without rounding, so that the fused form changes nothing.
[[gnu::always_inline]] inline lanes::F signed_sum(const lanes::F& y, const lanes::F& x, const lanes::F& sign) {
#if defined(__FMA__)
    return lanes::F(_mm256_fmadd_ps(__m256(x), __m256(sign), __m256(y)));
#else
    return y + x * sign;
#endif
}
[[gnu::always_inline]] inline V<double> signed_sum(const V<double>& y, const V<double>& x, const V<double>& sign) {
#if defined(__FMA__)
    return V<double>(_mm256_fmadd_pd(__m256d(x), __m256d(sign), __m256d(y)));
#else
    return y + x * sign;
#endif
}

// The Sylvester matrix of order `width` on the lanes of one register.
[[gnu::always_inline]] inline lanes::F within(lanes::F x) {
    x = signed_sum(__builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6), x, lanes::F{1, -1, 1, -1, 1, -1, 1, -1});
    x = signed_sum(__builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5), x, lanes::F{1, 1, -1, -1, 1, 1, -1, -1});
    return signed_sum(__builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3), x, lanes::F{1, 1, 1, 1, -1, -1, -1, -1});
}
[[gnu::always_inline]] inline V<double> within(V<double> x) {
    x = signed_sum(__builtin_shufflevector(x, x, 1, 0, 3, 2), x, V<double>{1, -1, 1, -1});
    return signed_sum(__builtin_shufflevector(x, x, 2, 3, 0, 1), x, V<double>{1, 1, -1, -1});
}

// `width` registers as a square matrix, rows into columns.
[[gnu::always_inline]] inline void transpose(lanes::F* r) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; k += 2) {
        const lanes::F a = r[k], b = r[k + 1];
        r[k] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
        r[k + 1] = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    lanes::F t[8];
#pragma GCC unroll 8
    for (int k = 0; k < 8; k += 4)
#pragma GCC unroll 8
        for (int h = 0; h < 2; ++h) {
            t[k + 2 * h] = __builtin_shufflevector(r[k + h], r[k + h + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            t[k + 2 * h + 1] = __builtin_shufflevector(r[k + h], r[k + h + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
#pragma GCC unroll 8
    for (int k = 0; k < 4; ++k) {
        r[k] = __builtin_shufflevector(t[k], t[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[k + 4] = __builtin_shufflevector(t[k], t[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}
[[gnu::always_inline]] inline void transpose(V<double>* r) {
    V<double> t[4];
#pragma GCC unroll 8
    for (int k = 0; k < 4; k += 2) {
        t[k] = __builtin_shufflevector(r[k], r[k + 1], 0, 4, 2, 6);
        t[k + 1] = __builtin_shufflevector(r[k], r[k + 1], 1, 5, 3, 7);
    }
#pragma GCC unroll 8
    for (int k = 0; k < 2; ++k) {
        r[k] = __builtin_shufflevector(t[k], t[k + 2], 0, 1, 4, 5);
        r[k + 2] = __builtin_shufflevector(t[k], t[k + 2], 2, 3, 6, 7);
    }
}

}  // namespace leadline::wide
