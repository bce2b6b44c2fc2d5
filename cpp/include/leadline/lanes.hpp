#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

// Eight floats side by side (a GCC and Clang extension): one AVX register, or two SSE ones.
namespace leadline::lanes {

using F = float __attribute__((vector_size(32)));
using I = std::int32_t __attribute__((vector_size(32)));
inline constexpr int width = 8;

inline F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline F fill(float x) { return F{x, x, x, x, x, x, x, x}; }
inline F min(F a, F b) { return a < b ? a : b; }
inline F max(F a, F b) { return a > b ? a : b; }
inline I bits(F v) { return std::bit_cast<I>(v); }
inline bool any(I v) {
    std::int32_t all = 0;
    for (int i = 0; i < width; ++i) all |= v[i];
    return all != 0;
}

}  // namespace leadline::lanes
