#pragma once
#if defined(__FMA__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <cstdint>
#include <cstring>

// Everything here is inlined: how such vectors are passed between functions does not matter.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

// Values side by side (a GCC and Clang extension), and what happens among the lanes of a vector or of a square of them.
namespace leadline::simd {

template <class T, int lanes>
struct VectorOf {
    using Type __attribute__((vector_size(lanes * sizeof(T)))) = T;
};
template <class T, int lanes>
using Vector = typename VectorOf<T, lanes>::Type;

// One AVX register, or two SSE ones.
template <class T>
inline constexpr int wide_lanes = 32 / sizeof(T);
template <class T>
using Wide = Vector<T, wide_lanes<T>>;

// One register of 32-bit lanes: integers wider than it are compared, shuffled and converted one by one.
#if defined(__AVX2__)
inline constexpr int register_lanes = 8;
#else
inline constexpr int register_lanes = 4;
#endif
template <class T>
using Register = Vector<T, register_lanes>;

template <class V, class T>
V load(const T* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
template <class V, class T>
void store(T* to, const V& v) {
    std::memcpy(to, &v, sizeof v);
}
template <class V, class T>
V fill(T value) {
    return value - V{};  // which keeps -0.0
}
template <class V>
V min(V a, V b) {
    return a < b ? a : b;
}
template <class V>
V max(V a, V b) {
    return a > b ? a : b;
}

// Eight lanes into one, in a tree.
template <class V, class Combine>
auto reduce(V v, Combine&& combine) {
    v = combine(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
    v = combine(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
    return combine(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6))[0];
}
inline bool any(Wide<std::int32_t> v) {
    return reduce(v, [](Wide<std::int32_t> a, Wide<std::int32_t> b) { return a | b; }) != 0;
}

// y + sign x for signs of +1 and -1: a product without rounding, so that the fused form changes nothing.
[[gnu::always_inline]] inline Wide<float> signed_sum(const Wide<float>& y, const Wide<float>& x,
                                                     const Wide<float>& sign) {
#if defined(__FMA__)
    return Wide<float>(_mm256_fmadd_ps(__m256(x), __m256(sign), __m256(y)));
#else
    return y + x * sign;
#endif
}
[[gnu::always_inline]] inline Wide<double> signed_sum(const Wide<double>& y, const Wide<double>& x,
                                                      const Wide<double>& sign) {
#if defined(__FMA__)
    return Wide<double>(_mm256_fmadd_pd(__m256d(x), __m256d(sign), __m256d(y)));
#else
    return y + x * sign;
#endif
}

// a b + c, rounded once where the processor can.
[[gnu::always_inline]] inline Register<float> multiply_add(const Register<float>& a, const Register<float>& b,
                                                           const Register<float>& c) {
#if defined(__FMA__)
    return Register<float>(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#else
    return a * b + c;
#endif
}

// The Sylvester matrix, of the order of the lanes, on the lanes of one vector.
[[gnu::always_inline]] inline Wide<float> mix_lanes(Wide<float> x) {
    using V = Wide<float>;
    x = signed_sum(__builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6), x, V{1, -1, 1, -1, 1, -1, 1, -1});
    x = signed_sum(__builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5), x, V{1, 1, -1, -1, 1, 1, -1, -1});
    return signed_sum(__builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3), x, V{1, 1, 1, 1, -1, -1, -1, -1});
}
[[gnu::always_inline]] inline Wide<double> mix_lanes(Wide<double> x) {
    x = signed_sum(__builtin_shufflevector(x, x, 1, 0, 3, 2), x, Wide<double>{1, -1, 1, -1});
    return signed_sum(__builtin_shufflevector(x, x, 2, 3, 0, 1), x, Wide<double>{1, 1, -1, -1});
}

// As many vectors as each has lanes, as a square matrix: rows into columns.
[[gnu::always_inline]] inline void transpose(Wide<float>* r) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; k += 2) {
        const Wide<float> a = r[k], b = r[k + 1];
        r[k] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
        r[k + 1] = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    Wide<float> t[8];
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
[[gnu::always_inline]] inline void transpose(Wide<double>* r) {
    Wide<double> t[4];
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

// Arrays beyond this many bytes do not stay in a cache: writing past it saves reading the lines first.
inline constexpr std::int64_t stream_bytes = std::int64_t{16} << 20;

// Copies n floats past the cache. Follow a series of them by fence().
inline void stream(const float* from, std::int64_t n, float* to) {
    std::int64_t i = 0;
#if defined(__SSE2__)
    for (; i < n && reinterpret_cast<std::uintptr_t>(to + i) % 16 != 0; ++i) to[i] = from[i];
    for (; i + 4 <= n; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
#endif
    for (; i < n; ++i) to[i] = from[i];
}
inline void fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace leadline::simd
