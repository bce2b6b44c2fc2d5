#pragma once
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <bit>
#include <cstdint>
#include <cstring>

// Everything here is inlined: how such vectors are passed between functions does not matter.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

// Eight floats side by side (a GCC and Clang extension): one AVX register, or two SSE ones.
namespace leadline::lanes {

using F = float __attribute__((vector_size(32)));
using I = std::int32_t __attribute__((vector_size(32)));
using U = std::uint32_t __attribute__((vector_size(32)));
inline constexpr int width = 8;

inline F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline F fill(float x) { return F{x, x, x, x, x, x, x, x}; }
inline F min(F a, F b) { return a < b ? a : b; }
inline F max(F a, F b) { return a > b ? a : b; }

// All eight lanes into one, in a tree.
template <class V, class Combine>
auto reduce(V v, Combine&& combine) {
    v = combine(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
    v = combine(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
    return combine(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6))[0];
}
inline bool any(I v) {
    return reduce(v, [](I a, I b) { return a | b; }) != 0;
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

}  // namespace leadline::lanes
