#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace leadline::hadamard {

// A block-diagonal matrix: `copies` of one Hadamard matrix of +1 and -1, the Kronecker product of the bases, in order,
// and of the Sylvester matrix of order 2^doublings.
struct Plan {
    struct Base {
        std::int64_t order;
        std::vector<std::int32_t> plus;   // columns of the +1 in each row, one row after another
        std::vector<std::int32_t> first;  // where each row's begin; order + 1 entries
    };
    std::int64_t copies = 1;
    std::vector<Base> bases;
    std::int64_t doublings = 0;

    std::int64_t order() const;  // of one copy
    std::int64_t size() const { return copies * order(); }
};

// From its rows, +1 or -1 each.
Plan::Base base(std::span<const std::int8_t> rows, std::int64_t order);

// What happens before and after the product, each of `size` entries: out[j] = after[j] y[put[j]] for y = H z,
// z[i] = before[i] x[take[i]]. All but `before` may be empty.
template <class T>
struct Around {
    std::span<const T> before, after;
    std::span<const std::int32_t> take, put;
};

// Applies H along the middle axis of (outer, size, inner); `out` is x itself or apart from it. The same for any number
// of threads. T is float or double, and sums are taken in it.
template <class T>
void apply(const Plan& plan, const Around<T>& around, std::span<const T> x, std::int64_t inner, std::span<T> out,
           int threads);

}  // namespace leadline::hadamard
