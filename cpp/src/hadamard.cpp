#include "leadline/hadamard.hpp"

#include <algorithm>
#include <string>

#include "leadline/error.hpp"
#include "leadline/lanes.hpp"
#include "leadline/parallel.hpp"

namespace leadline::hadamard {
namespace {

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

// The Sylvester matrix of order `width` on the lanes of one register.
inline void within(lanes::F& x) {
    x = __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6) + x * lanes::F{1, -1, 1, -1, 1, -1, 1, -1};
    x = __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5) + x * lanes::F{1, 1, -1, -1, 1, 1, -1, -1};
    x = __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3) + x * lanes::F{1, 1, 1, 1, -1, -1, -1, -1};
}
inline void within(V<double>& x) {
    x = __builtin_shufflevector(x, x, 1, 0, 3, 2) + x * V<double>{1, -1, 1, -1};
    x = __builtin_shufflevector(x, x, 2, 3, 0, 1) + x * V<double>{1, 1, -1, -1};
}

// 2^log registers through the Sylvester matrix of that order. Unrolled, so that they stay registers.
template <int log, class Vector>
inline void mix(Vector* r) {
    if constexpr (log > 0) {
        constexpr int half = 1 << (log - 1);
#pragma GCC unroll 8
        for (int k = 0; k < half; ++k) {
            const Vector a = r[k], b = r[k + half];
            r[k] = a + b;
            r[k + half] = a - b;
        }
        mix<log - 1>(r);
        mix<log - 1>(r + half);
    }
}

// The same for registers `stride` apart, for all of `count`.
template <int log, class Vector, class Load, class Store>
void butterflies(std::int64_t count, std::int64_t stride, Load&& from, Store&& to) {
    constexpr int radix = 1 << log;
    for (std::int64_t start = 0; start < count; start += stride * radix)
        for (std::int64_t i = start; i < start + stride; ++i) {
            Vector r[radix];
#pragma GCC unroll 8
            for (int k = 0; k < radix; ++k) r[k] = from(i + k * stride);
            mix<log>(r);
#pragma GCC unroll 8
            for (int k = 0; k < radix; ++k) to(i + k * stride, r[k]);
        }
}

// All `doublings` over `count` registers, three at a time, in `tile`, which fits a cache. The first pass reads `from`,
// neighbours first: what comes from memory is read in order.
template <class Vector, class Load>
void sylvester(std::int64_t count, std::int64_t doublings, Vector* tile, Load&& from) {
    const auto read = [tile](std::int64_t i) { return tile[i]; };
    const auto write = [tile](std::int64_t i, const Vector& v) { tile[i] = v; };
    const auto pass = [&](std::int64_t log, std::int64_t stride, auto&& in) {
        if (log == 3) butterflies<3, Vector>(count, stride, in, write);
        else if (log == 2) butterflies<2, Vector>(count, stride, in, write);
        else if (log == 1) butterflies<1, Vector>(count, stride, in, write);
        else butterflies<0, Vector>(count, 1, in, write);
    };
    const auto at_once = [](std::int64_t left) { return left == 4 || left == 2 ? 2 : std::min<std::int64_t>(left, 3); };
    std::int64_t done = at_once(doublings);
    pass(done, 1, from);
    while (done < doublings) {
        const std::int64_t log = at_once(doublings - done);
        pass(log, std::int64_t{1} << done, read);
        done += log;
    }
}

// One base along an axis of `stride` registers: of each row only the +1 are added, and what is left follows from the
// sum of all.
template <class Vector>
void base_stage(const Plan::Base& base, std::int64_t count, std::int64_t stride, Vector* tile,
                std::vector<Vector>& scratch) {
    const std::int64_t order = base.order;
    scratch.resize(static_cast<std::size_t>(order));
    for (std::int64_t start = 0; start < count; start += stride * order)
        for (std::int64_t i = start; i < start + stride; ++i) {
            Vector* x = scratch.data();
            Vector all = tile[i];
            x[0] = all;
            for (std::int64_t k = 1; k < order; ++k) all += x[k] = tile[i + k * stride];
            const std::int32_t* column = base.plus.data();
            for (std::int64_t row = 0; row < order; ++row) {
                const std::int32_t* end = base.plus.data() + base.first[row + 1];
                Vector some = all - all, more = some;
                for (; column + 2 <= end; column += 2) some += x[column[0]], more += x[column[1]];
                if (column < end) some += x[*column++];
                some += more;
                tile[i + row * stride] = some + some - all;
            }
        }
}

template <class Vector>
void bases(const Plan& plan, std::int64_t count, std::int64_t stride, Vector* tile, std::vector<Vector>& scratch) {
    for (auto base = plan.bases.rbegin(); base != plan.bases.rend(); ++base) {
        base_stage(*base, count, stride, tile, scratch);
        stride *= base->order;
    }
}

template <class T>
struct Scratch {
    std::vector<V<T>> tile, base;
};

// A row of contiguous values whose Sylvester part fills registers; `streams` past the cache.
template <class T>
void row(const Plan& plan, const Around<T>& around, const T* x, T* out, bool streams, Scratch<T>& scratch) {
    const std::int64_t n = plan.size(), count = n / width<T>, across = plan.doublings - Wide<T>::log;
    scratch.tile.resize(static_cast<std::size_t>(count));
    V<T>* tile = scratch.tile.data();
    T* values = reinterpret_cast<T*>(tile);
    if (!around.take.empty()) {
        for (std::int64_t i = 0; i < n; ++i) values[i] = x[around.take[i]];
        x = values;
    }
    // Runs for every register: by value, and without a condition. The next row is on its way meanwhile.
    const auto from = [x, ahead = std::max<std::int64_t>(n, 1024), factors = around.before.data()](std::int64_t i) {
        __builtin_prefetch(x + i * width<T> + ahead);
        V<T> v = load(x + i * width<T>) * load(factors + i * width<T>);
        within(v);
        return v;
    };
    sylvester<V<T>>(count, across, tile, from);
    bases(plan, count, (std::int64_t{1} << plan.doublings) / width<T>, tile, scratch.base);
    if (!around.put.empty()) {
        for (std::int64_t j = 0; j < n; ++j)
            out[j] = values[around.put[j]] * (around.after.empty() ? T{1} : around.after[j]);
        return;
    }
    if (!around.after.empty())
        for (std::int64_t i = 0; i < count; ++i) tile[i] *= load(&around.after[i * width<T>]);
    const std::int64_t words = n * static_cast<std::int64_t>(sizeof(T) / sizeof(float));
    if (streams) lanes::stream(reinterpret_cast<const float*>(values), words, reinterpret_cast<float*>(out));
    else std::memcpy(out, values, static_cast<std::size_t>(n) * sizeof(T));
}

// `columns` (a register's width at most) side by side: element i of column c lies at i * step + c * apart.
template <class T>
void columns(const Plan& plan, const Around<T>& around, const T* x, T* out, std::int64_t step, std::int64_t apart,
             std::int64_t columns, Scratch<T>& scratch) {
    const std::int64_t n = plan.size();
    scratch.tile.resize(static_cast<std::size_t>(n));
    V<T>* tile = scratch.tile.data();
    const bool full = apart == 1 && columns == width<T>;
    for (std::int64_t i = 0; i < n; ++i) {
        const T* source = x + (around.take.empty() ? i : around.take[i]) * step;
        V<T> v{};
        if (full) v = load(source);
        else for (std::int64_t c = 0; c < columns; ++c) v[c] = source[c * apart];
        tile[i] = v * around.before[i];
    }
    sylvester<V<T>>(n, plan.doublings, tile, [tile](std::int64_t i) { return tile[i]; });
    bases(plan, n, std::int64_t{1} << plan.doublings, tile, scratch.base);
    for (std::int64_t j = 0; j < n; ++j) {
        const V<T> y = tile[around.put.empty() ? j : around.put[j]];
        const V<T> v = around.after.empty() ? y : V<T>(y * around.after[j]);
        T* target = out + j * step;
        if (full) store(target, v);
        else for (std::int64_t c = 0; c < columns; ++c) target[c * apart] = v[c];
    }
}

template <class T>
void check(std::span<const T> entries, std::size_t size, const char* rule) {
    require(entries.empty() || entries.size() == size, "hadamard", rule, std::to_string(entries.size()));
}

void check_places(std::span<const std::int32_t> places, std::int64_t size) {
    check(places, static_cast<std::size_t>(size), "a permutation must have an entry for each element");
    for (const std::int32_t place : places)
        require(place >= 0 && place < size, "hadamard", "a permutation must stay inside", std::to_string(place));
}

}  // namespace

std::int64_t Plan::block() const {
    std::int64_t size = std::int64_t{1} << doublings;
    for (const Base& base : bases) size *= base.order;
    return size;
}

Plan::Base base(std::span<const std::int8_t> rows, std::int64_t order) {
    require(order > 0 && static_cast<std::int64_t>(rows.size()) == order * order, "hadamard",
            "a base must be square", std::to_string(rows.size()) + " entries");
    Plan::Base found{order, {}, {0}};
    for (std::int64_t row = 0; row < order; ++row) {
        for (std::int64_t column = 0; column < order; ++column)
            if (rows[row * order + column] > 0) found.plus.push_back(static_cast<std::int32_t>(column));
        found.first.push_back(static_cast<std::int32_t>(found.plus.size()));
    }
    return found;
}

template <class T>
void apply(const Plan& plan, const Around<T>& around, std::span<const T> x, std::int64_t inner, std::span<T> out,
           int threads) {
    const std::int64_t n = plan.size(), total = static_cast<std::int64_t>(x.size());
    require(inner > 0 && total % (n * inner) == 0 && x.size() == out.size(), "hadamard",
            "x must be whole rows and fit out", std::to_string(total) + " elements");
    require(static_cast<std::int64_t>(around.before.size()) == n, "hadamard", "before must have a factor for each element",
            std::to_string(around.before.size()));
    check(around.after, static_cast<std::size_t>(n), "after must have a factor for each element");
    check_places(around.take, n);
    check_places(around.put, n);
    const std::int64_t outer = total / (n * inner);
    if (inner == 1 && plan.doublings >= Wide<T>::log) {
        const std::int64_t rows = std::max<std::int64_t>(1, chunk_elements / n);
        const bool streams = x.data() != out.data() && out.size_bytes() >= lanes::stream_bytes;
        parallel_for(chunk_count(outer, rows), threads, [&](std::int64_t task, int) {
            thread_local Scratch<T> scratch;
            for (std::int64_t r = task * rows; r < std::min(outer, (task + 1) * rows); ++r)
                row(plan, around, &x[r * n], &out[r * n], streams, scratch);
            if (streams) lanes::fence();
        });
        return;
    }
    if (inner == 1) {  // rows beside one another
        parallel_for(chunk_count(outer, width<T>), threads, [&](std::int64_t task, int) {
            thread_local Scratch<T> scratch;
            const std::int64_t first = task * width<T>;
            columns(plan, around, &x[first * n], &out[first * n], std::int64_t{1}, n, std::min(width<T>, outer - first),
                    scratch);
        });
        return;
    }
    const std::int64_t parts = chunk_count(inner, width<T>);
    parallel_for(outer * parts, threads, [&](std::int64_t task, int) {
        thread_local Scratch<T> scratch;
        const std::int64_t first = task % parts * width<T>, start = task / parts * n * inner + first;
        columns(plan, around, &x[start], &out[start], inner, std::int64_t{1}, std::min(width<T>, inner - first),
                scratch);
    });
}

template void apply(const Plan&, const Around<float>&, std::span<const float>, std::int64_t, std::span<float>, int);
template void apply(const Plan&, const Around<double>&, std::span<const double>, std::int64_t, std::span<double>, int);

}  // namespace leadline::hadamard
