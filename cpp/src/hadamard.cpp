#include "leadline/hadamard.hpp"

#include <algorithm>
#include <bit>
#include <string>
#include <type_traits>

#include "leadline/error.hpp"
#include "parallel.hpp"
#include "simd.hpp"

namespace leadline::hadamard {
namespace {

using simd::store, simd::mix_lanes, simd::transpose;

template <class T>
using V = simd::Wide<T>;
template <class T>
constexpr std::int64_t lanes = simd::wide_lanes<T>;
template <class T>
constexpr int log_lanes = std::countr_zero(static_cast<unsigned>(lanes<T>));
template <class T>
V<T> load(const T* from) {
    return simd::load<V<T>>(from);
}

// 2^log registers through the Sylvester matrix of that order. Unrolled, so that they stay registers.
template <int log, class Vector>
[[gnu::always_inline]] inline void mix(Vector* r) {
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
template <int log, class Vector, class In, class Out>
[[gnu::always_inline]] inline void butterflies_apart(std::int64_t count, std::int64_t stride, In in, Out out) {
    constexpr int radix = 1 << log;
    for (std::int64_t start = 0; start < count; start += stride * radix)
        for (std::int64_t i = start; i < start + stride; ++i) {
            std::int64_t at = i;
            asm("" : "+r"(at));  // or GCC keeps a pointer for each load, most of them in memory
            Vector r[radix];
#pragma GCC unroll 16
            for (int k = 0; k < radix; ++k) r[k] = in(at + k * stride);
            mix<log>(r);
#pragma GCC unroll 16
            for (int k = 0; k < radix; ++k) out(at + k * stride, r[k]);
        }
}
template <int log, class Vector, class In, class Out>
void butterflies(std::int64_t count, std::int64_t stride, In in, Out out) {
    if (stride == 1) butterflies_apart<log, Vector>(count, 1, in, out);
    else butterflies_apart<log, Vector>(count, stride, in, out);
}

template <class Vector>
struct Read {
    const Vector* from;
    Vector operator()(std::int64_t i) const { return from[i]; }
};
template <class Vector>
struct Write {
    Vector* to;
    void operator()(std::int64_t i, const Vector& v) const { to[i] = v; }
};

// One base for registers `stride` apart, `together` neighbours at once: of each row only the +1 are added, and what is
// left follows from the sum of all.
template <int together, class Vector, class In, class Out>
void base_stage(const Plan::Base& base, std::int64_t count, std::int64_t stride, In in, Out out, Vector* x) {
    for (std::int64_t start = 0; start < count; start += stride * base.order)
        for (std::int64_t i = start; i < start + stride; i += together) {
            Vector all[together]{};
            for (std::int64_t k = 0; k < base.order; ++k)
#pragma GCC unroll 4
                for (int w = 0; w < together; ++w) all[w] += x[k * together + w] = in(i + k * stride + w);
            const std::int32_t* column = base.plus.data();
            for (std::int64_t row = 0; row < base.order; ++row) {
                Vector some[together]{};
                for (const auto* end = base.plus.data() + base.first[row + 1]; column < end; ++column)
#pragma GCC unroll 4
                    for (int w = 0; w < together; ++w) some[w] += x[*column * together + w];
#pragma GCC unroll 4
                for (int w = 0; w < together; ++w) out(i + row * stride + w, some[w] + some[w] - all[w]);
            }
        }
}

template <class T>
struct Scratch {
    std::vector<V<T>> work, base;

    static V<T>* room(std::vector<V<T>>& registers, std::int64_t count) {
        if (registers.size() < static_cast<std::size_t>(count)) registers.resize(static_cast<std::size_t>(count));
        return registers.data();
    }
};

// The Sylvester matrix of order 2^doublings and the bases over `count` registers, neighbours `unit` apart, in passes
// over `work`. The first pass reads `in`, the last one writes `out`.
template <class T, class In, class Out>
void product(std::span<const Plan::Base> bases, std::int64_t doublings, std::int64_t unit, std::int64_t count,
             V<T>* work, Scratch<T>& scratch, In in, Out out) {
    const Read<V<T>> read{work};
    const Write<V<T>> write{work};
    bool first = true;
    do {
        const Plan::Base* base = doublings || bases.empty() ? nullptr : &bases.back();
        const std::int64_t passes = (doublings + 2) / 3, log = passes ? (doublings + passes - 1) / passes : 0;
        doublings -= log;
        if (base) bases = bases.first(bases.size() - 1);
        const bool last = bases.empty() && !doublings;
        const auto pass = [&](auto from, auto to) {
            if (base) {
                V<T>* x = scratch.room(scratch.base, base->order * 4);
                if (unit % 4 == 0) base_stage<4>(*base, count, unit, from, to, x);
                else if (unit % 2 == 0) base_stage<2>(*base, count, unit, from, to, x);
                else base_stage<1>(*base, count, unit, from, to, x);
            } else if (log == 3) butterflies<3, V<T>>(count, unit, from, to);
            else if (log == 2) butterflies<2, V<T>>(count, unit, from, to);
            else if (log == 1) butterflies<1, V<T>>(count, unit, from, to);
            else butterflies<0, V<T>>(count, 1, from, to);
        };
        if constexpr (std::is_same_v<In, Read<V<T>>>) pass(read, write);
        else if (first && last) pass(in, out);
        else if (first) pass(in, write);
        else if (last) pass(read, out);
        else pass(read, write);
        unit *= base ? base->order : std::int64_t{1} << log;
        first = false;
    } while (doublings || !bases.empty());
}

// `count` registers of contiguous rows whose Sylvester part fills registers; `streams` past the cache.
template <class T>
void transform_rows(const Plan& plan, const T* before, const T* after, const T* x, std::int64_t count, T* out,
                    bool streams, Scratch<T>& scratch) {
    V<T>* work = scratch.room(scratch.work, count);
    // Run for every register: by value, and without a condition. The next rows are on their way meanwhile.
    const auto in = [x, before, ahead = std::max<std::int64_t>(count * lanes<T>, 1024)](std::int64_t i) {
        __builtin_prefetch(x + i * lanes<T> + ahead);
        return mix_lanes(load(x + i * lanes<T>) * load(before + i * lanes<T>));
    };
    const std::int64_t across = plan.doublings - log_lanes<T>;
    if (!after && !streams) {
        product<T>(plan.bases, across, 1, count, work, scratch, in,
                   [out](std::int64_t i, const V<T>& v) { store(out + i * lanes<T>, v); });
        return;
    }
    product<T>(plan.bases, across, 1, count, work, scratch, in, Write<V<T>>{work});
    if (after)
        for (std::int64_t i = 0; i < count; ++i) work[i] *= load(after + i * lanes<T>);
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(V<T>);
    const auto floats = static_cast<std::int64_t>(bytes / sizeof(float));
    if (streams) simd::stream(reinterpret_cast<const float*>(work), floats, reinterpret_cast<float*>(out));
    else std::memcpy(out, work, bytes);
}

// Of values that are `unit` registers each and lie side by side. Behind each `segment` some registers stay free: values
// a power of two apart would compete for the same few places of a cache.
constexpr std::int64_t segment_log = 6, segment = 1 << segment_log, pitch = segment + 2;

template <class T>
struct PaddedValues {
    const Plan& plan;
    std::int64_t unit, inside, gap;  // the doublings inside a segment, and the registers behind it
    Scratch<T>& scratch;
    V<T>* registers;

    PaddedValues(const Plan& of, std::int64_t each, Scratch<T>& in)
        : plan(of), unit(each), inside(std::countr_zero(static_cast<std::uint64_t>(segment / each))),
          gap(of.doublings >= inside ? pitch - segment : 0), scratch(in),
          registers(in.room(in.work, of.size() * each / segment * pitch + segment)) {}

    V<T>* operator[](std::int64_t i) const { return registers + i * unit + (i * unit >> segment_log) * gap; }
    void transform() const {
        const std::int64_t count = plan.size() * unit;
        const auto multiply = [&](std::span<const Plan::Base> bases, std::int64_t doublings, std::int64_t apart,
                                  std::int64_t length, V<T>* at) {
            if (doublings || !bases.empty())
                product<T>(bases, doublings, apart, length, at, scratch, Read<V<T>>{at}, Write<V<T>>{at});
        };
        if (!gap) return multiply(plan.bases, plan.doublings, unit, count, registers);
        for (std::int64_t s = 0; s < count / segment; ++s) multiply({}, inside, unit, segment, registers + s * pitch);
        multiply(plan.bases, plan.doublings - inside, pitch, count / segment * pitch, registers);
    }
};

// Up to `unit` registers of rows of n values beside one another. Where there are less rows, the last is read again.
template <int unit, class T>
void transform_beside(const Plan& plan, const Around<T>& around, const std::vector<std::int32_t>& untake, const T* x,
                      T* out, std::int64_t count, Scratch<T>& scratch) {
    const std::int64_t n = plan.size(), whole = n / lanes<T> * lanes<T>;
    const PaddedValues<T> values(plan, unit, scratch);
    for (int w = 0; w < unit; ++w) {
        std::int64_t at[lanes<T>];
        for (std::int64_t c = 0; c < lanes<T>; ++c) at[c] = std::min(w * lanes<T> + c, count - 1) * n;
        const auto put = [&](std::int64_t i, const V<T>& v) {
            const std::int64_t to = untake.empty() ? i : untake[i];
            values[to][w] = v * around.before[to];
        };
        for (std::int64_t i = 0; i < whole; i += lanes<T>) {
            V<T> r[lanes<T>];
#pragma GCC unroll 8
            for (int c = 0; c < lanes<T>; ++c) {
                r[c] = load(x + at[c] + i);
                __builtin_prefetch(x + at[c] + i + unit * lanes<T> * n, 0, 2);
            }
            transpose(r);
#pragma GCC unroll 8
            for (int k = 0; k < lanes<T>; ++k) put(i + k, r[k]);
        }
        for (std::int64_t i = whole; i < n; ++i) {
            V<T> v;
            for (std::int64_t c = 0; c < lanes<T>; ++c) v[c] = x[at[c] + i];
            put(i, v);
        }
    }
    values.transform();
    for (int w = 0; w * lanes<T> < count; ++w) {
        const std::int64_t left = std::min(lanes<T>, count - w * lanes<T>);
        T* target = out + w * lanes<T> * n;
        const auto take = [&](std::int64_t j) {
            const V<T> v = values[around.put.empty() ? j : around.put[j]][w];
            return around.after.empty() ? v : v * around.after[j];
        };
        for (std::int64_t j = 0; j < whole; j += lanes<T>) {
            V<T> r[lanes<T>];
#pragma GCC unroll 8
            for (int k = 0; k < lanes<T>; ++k) r[k] = take(j + k);
            transpose(r);
#pragma GCC unroll 8
            for (int c = 0; c < lanes<T>; ++c)
                if (c < left) store(target + c * n + j, r[c]);
        }
        for (std::int64_t j = whole; j < n; ++j) {
            const V<T> v = take(j);
            for (std::int64_t c = 0; c < left; ++c) target[c * n + j] = v[c];
        }
    }
}

// Columns lie far apart: lines are asked for this many rows before they are read or written.
constexpr std::int64_t rows_ahead = 8;

// `unit` registers of columns, or `count` columns that do not fill one.
template <int unit, class T>
void transform_columns(const Plan& plan, const Around<T>& around, const T* x, T* out, std::int64_t step,
                       std::int64_t count, Scratch<T>& scratch) {
    const std::int64_t n = plan.size();
    const std::size_t bytes = static_cast<std::size_t>(std::min(count, unit * lanes<T>)) * sizeof(T);
    const bool full = count >= unit * lanes<T>;
    const PaddedValues<T> values(plan, unit, scratch);
    const auto from = [&](std::int64_t i) { return x + (around.take.empty() ? i : around.take[i]) * step; };
    for (std::int64_t i = 0; i < n; ++i) {
        const T* source = from(i);
        const T* ahead = from(std::min(i + rows_ahead, n - 1));
        V<T>* to = values[i];
        if (full) {
#pragma GCC unroll 8
            for (int w = 0; w < unit; ++w) {
                to[w] = load(source + w * lanes<T>) * around.before[i];
                __builtin_prefetch(ahead + w * lanes<T>);
            }
        } else {
            V<T> v{};
            std::memcpy(&v, source, bytes);
            *to = v * around.before[i];
        }
    }
    values.transform();
    for (std::int64_t j = 0; j < n; ++j) {
        const V<T>* y = values[around.put.empty() ? j : around.put[j]];
        const T factor = around.after.empty() ? T{1} : around.after[j];
        if (full) {
#pragma GCC unroll 8
            for (int w = 0; w < unit; ++w) {
                store(out + j * step + w * lanes<T>, y[w] * factor);
                __builtin_prefetch(out + (j + rows_ahead) * step + w * lanes<T>, 1);
            }
        } else {
            const V<T> v = *y * factor;
            std::memcpy(out + j * step, &v, bytes);
        }
    }
}

template <class T>
void require_size(std::span<const T> entries, std::size_t size, const char* rule) {
    require(entries.empty() || entries.size() == size, "hadamard", rule, std::to_string(entries.size()));
}

// The inverse of a permutation.
std::vector<std::int32_t> inverse(std::span<const std::int32_t> places, std::int64_t size) {
    require_size(places, static_cast<std::size_t>(size), "a permutation must have an entry for each element");
    std::vector<std::int32_t> origins(places.size(), -1);
    for (std::size_t i = 0; i < places.size(); ++i) {
        const std::int32_t place = places[i];
        require(place >= 0 && place < size, "hadamard", "a permutation must stay inside", std::to_string(place));
        require(origins[place] < 0, "hadamard", "a permutation must name each place once", std::to_string(place));
        origins[place] = static_cast<std::int32_t>(i);
    }
    return origins;
}

// `entries` repeated.
template <class T>
std::vector<T> repeated(std::span<const T> entries, std::int64_t times) {
    std::vector<T> copies;
    for (std::int64_t k = 0; k < times; ++k) copies.insert(copies.end(), entries.begin(), entries.end());
    return copies;
}

}  // namespace

std::int64_t Plan::order() const {
    std::int64_t product = std::int64_t{1} << doublings;
    for (const Base& base : bases) product *= base.order;
    return product;
}

Plan::Base base(std::span<const std::int8_t> rows, std::int64_t order) {
    require(order > 0 && static_cast<std::int64_t>(rows.size()) == order * order, "hadamard",
            "a base must be square", std::to_string(rows.size()) + " entries");
    Plan::Base made{order, {}, {0}};
    for (std::int64_t row = 0; row < order; ++row) {
        for (std::int64_t column = 0; column < order; ++column)
            if (rows[row * order + column] > 0) made.plus.push_back(static_cast<std::int32_t>(column));
        made.first.push_back(static_cast<std::int32_t>(made.plus.size()));
    }
    return made;
}

template <class T>
void apply(const Plan& plan, const Around<T>& around, std::span<const T> x, std::int64_t inner, std::span<T> out,
           int threads) {
    const std::int64_t n = plan.size(), total = static_cast<std::int64_t>(x.size());
    require(inner > 0 && total % (n * inner) == 0 && x.size() == out.size(), "hadamard",
            "x must be whole rows and fit out", std::to_string(total) + " elements");
    require(static_cast<std::int64_t>(around.before.size()) == n, "hadamard",
            "before must have a factor for each element", std::to_string(around.before.size()));
    require_size(around.after, static_cast<std::size_t>(n), "after must have a factor for each element");
    const auto untake = inverse(around.take, n);
    inverse(around.put, n);
    const std::int64_t outer = total / (n * inner);
    // Calls body(first, count) for `all` things, `size` at a time.
    const auto each = [&](std::int64_t all, std::int64_t size, auto&& body) {
        parallel_for(chunk_count(all, size), threads, [&](std::int64_t task, int) {
            thread_local Scratch<T> scratch;
            body(task * size, std::min(size, all - task * size), scratch);
        });
    };
    if (inner == 1 && plan.doublings >= log_lanes<T> && around.take.empty() && around.put.empty()) {
        const std::int64_t together = std::max<std::int64_t>(1, 512 / n);  // short rows
        const auto before = repeated(around.before, together), after = repeated(around.after, together);
        const bool streams = x.data() != out.data() && out.size_bytes() >= simd::stream_bytes;
        const std::int64_t share = chunk_count(chunk_elements, n * together) * together;
        each(outer, share, [&](std::int64_t first, std::int64_t count, Scratch<T>& scratch) {
            for (std::int64_t r = first; r < first + count; r += together)
                transform_rows(plan, before.data(), after.empty() ? nullptr : after.data(), &x[r * n],
                     std::min(together, first + count - r) * n / lanes<T>, &out[r * n], streams, scratch);
            if (streams) simd::fence();
        });
        return;
    }
    if (inner == 1) {
        const auto transform = n <= 128 ? transform_beside<4, T> : transform_beside<1, T>;
        each(outer, (n <= 128 ? 4 : 1) * lanes<T>, [&](std::int64_t first, std::int64_t count, Scratch<T>& scratch) {
            transform(plan, around, untake, &x[first * n], &out[first * n], count, scratch);
        });
        return;
    }
    const std::int64_t group = (n <= 1024 ? 8 : 4) * lanes<T>, full = inner / group;
    const std::int64_t parts = full + chunk_count(inner % group, lanes<T>);
    each(outer * parts, 1, [&](std::int64_t task, std::int64_t, Scratch<T>& scratch) {
        const std::int64_t part = task % parts;
        const std::int64_t first = part < full ? part * group : full * group + (part - full) * lanes<T>;
        const std::int64_t start = task / parts * n * inner + first;
        const auto transform = part >= full ? transform_columns<1, T>
                               : n <= 1024  ? transform_columns<8, T>
                                            : transform_columns<4, T>;
        transform(plan, around, &x[start], &out[start], inner, inner - first, scratch);
    });
}

template void apply(const Plan&, const Around<float>&, std::span<const float>, std::int64_t, std::span<float>, int);
template void apply(const Plan&, const Around<double>&, std::span<const double>, std::int64_t, std::span<double>, int);

}  // namespace leadline::hadamard
