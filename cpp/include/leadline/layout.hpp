#pragma once
#include <cstdint>
#include <string>

#include "leadline/error.hpp"

namespace leadline {

// Every granularity is one number triple: a C-contiguous array seen as [outer, channels, inner], one grid per channel.
// Per tensor: {1, 1, n}. Per axis: {before, axis, after}. Per block of the last axis: {1, n / block, block}.
struct Layout {
    std::int64_t outer = 1;
    std::int64_t channels = 1;
    std::int64_t inner = 0;

    std::int64_t size() const { return outer * channels * inner; }
};

inline void check_layout(const Layout& layout, std::int64_t size, std::int64_t parameters, const char* function) {
    require(layout.outer >= 0 && layout.channels >= 0 && layout.inner >= 0 && layout.channels == parameters, function,
            "layout must match the parameters",
            std::to_string(layout.channels) + " channels and " + std::to_string(parameters) + " parameters");
    // Every factor is at most `size` unless the product is zero, so that it cannot overflow unnoticed.
    const bool empty = layout.outer == 0 || layout.channels == 0 || layout.inner == 0;
    const bool covers = empty ? size == 0
                              : layout.outer <= size && layout.inner <= size / layout.outer &&
                                    layout.channels == size / layout.outer / layout.inner && layout.size() == size;
    require(covers, function, "layout must cover the array", std::to_string(size) + " elements");
}

}  // namespace leadline
