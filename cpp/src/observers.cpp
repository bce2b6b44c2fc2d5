#include "leadline/observers.hpp"

#include <algorithm>
#include <atomic>
#include <utility>

#include "counting.hpp"
#include "parallel.hpp"

namespace leadline::observers {
namespace {

// Copies `rows` rows of `count` channels to one contiguous run per channel, `stride` apart. Single elements go in
// squares of a cache line's length, so that few lines and pages are in use at a time.
void gather(const float* from, const Layout& layout, std::int64_t rows, std::int64_t count, std::int64_t stride,
            float* to) {
    const std::int64_t row = layout.channels * layout.inner;
    constexpr std::int64_t square = 16;
    if (layout.inner > 1) {
        for (std::int64_t o = 0; o < rows; ++o)
            for (std::int64_t c = 0; c < count; ++c)
                std::copy_n(from + o * row + c * layout.inner, layout.inner, to + c * stride + o * layout.inner);
        return;
    }
    for (std::int64_t o = 0; o < rows; o += square)
        for (std::int64_t c = 0; c < count; c += square)
            for (std::int64_t i = c; i < std::min(c + square, count); ++i)
                for (std::int64_t j = o; j < std::min(o + square, rows); ++j) to[i * stride + j] = from[j * row + i];
}

// Counts channels [first, last) of x, a cache line of them or a run at a time.
bool count_channels(std::span<const float> x, const Layout& layout, std::int64_t first, std::int64_t last, Table& table,
                    std::vector<Channel>& into) {
    constexpr std::int64_t direct = 512;       // shorter runs are gathered first
    constexpr std::int64_t gather_at = 16384;  // elements per channel
    bool good = true;
    if (layout.inner == 1 && last - first >= lanes) {
        BesideTables& beside = BesideTables::mine();
        for (std::int64_t row = 0; row < layout.outer; row += fold_elements) {
            const std::int64_t rows = std::min(fold_elements, layout.outer - row);
            beside.count(&x[row * layout.channels + first], layout.channels, last - first, rows);
            good &= beside.fold(&into[first], last - first);
        }
        return good;
    }
    if (layout.inner >= direct) {
        for (std::int64_t c = first; c < last; ++c) {
            std::int64_t pending = 0;
            for (std::int64_t o = 0; o < layout.outer; ++o)
                for (std::int64_t done = 0; done < layout.inner;) {
                    const std::int64_t n = std::min(fold_elements - pending, layout.inner - done);
                    table.count(&x[(o * layout.channels + c) * layout.inner + done], n);
                    done += n, pending += n;
                    if (pending == fold_elements) good &= table.fold(into[c]), pending = 0;
                }
            good &= table.fold(into[c]);
        }
        return good;
    }
    const std::int64_t rows = std::clamp<std::int64_t>(gather_at / layout.inner, 1, std::max<std::int64_t>(layout.outer, 1));
    const std::int64_t stride = rows * layout.inner + 16;  // not a power of two, which would collide in the cache
    std::vector<float>& gathered = table.gathered;
    gathered.resize(std::max(gathered.size(), static_cast<std::size_t>((last - first) * stride)));
    for (std::int64_t row = 0; row < layout.outer; row += rows) {
        const std::int64_t height = std::min(rows, layout.outer - row);
        gather(&x[(row * layout.channels + first) * layout.inner], layout, height, last - first, stride, gathered.data());
        for (std::int64_t c = first; c < last; ++c) {
            table.count(&gathered[(c - first) * stride], height * layout.inner);
            good &= table.fold(into[c]);
        }
    }
    return good;
}

}  // namespace

Bucket* Side::cover(std::int32_t first, std::int32_t last) {
    if (buckets.empty()) begin = first;
    if (first < begin) {
        buckets.insert(buckets.begin(), static_cast<std::size_t>(begin - first), Bucket{});
        begin = first;
    }
    if (last > end()) buckets.resize(static_cast<std::size_t>(last - begin));
    return &buckets[static_cast<std::size_t>(first - begin)];
}

void Channel::merge(const Channel& other) {
    count += other.count, zeros += other.zeros;
    lo = std::min(lo, other.lo), hi = std::max(hi, other.hi);
    for (int sign = 0; sign < 2; ++sign) {
        const Side& from = other.sides[sign];
        if (from.buckets.empty()) continue;
        Bucket* into = sides[sign].cover(from.begin, from.end());
        for (std::size_t i = 0; i < from.buckets.size(); ++i) {
            into[i].count += from.buckets[i].count;
            into[i].first += from.buckets[i].first;
            into[i].second += from.buckets[i].second;
        }
    }
}

double Channel::sum() const {
    double total = 0.0;
    for (int sign = 0; sign < 2; ++sign)
        for (std::int32_t key = sides[sign].begin; key < sides[sign].end(); ++key) {
            const Bucket& b = sides[sign].buckets[static_cast<std::size_t>(key - sides[sign].begin)];
            const double part = static_cast<double>(b.count) * lower_edge(key) + unit(key) * static_cast<double>(b.first);
            total += sign ? -part : part;
        }
    return total;
}

double Channel::sum_sq() const {
    double total = 0.0;
    for (const Side& side : sides)
        for (std::int32_t key = side.begin; key < side.end(); ++key) {
            const Bucket& b = side.buckets[static_cast<std::size_t>(key - side.begin)];
            const double edge = lower_edge(key), step = unit(key);
            total += static_cast<double>(b.count) * edge * edge + 2.0 * edge * step * static_cast<double>(b.first) +
                     1024.0 * step * step * static_cast<double>(b.second);
        }
    return total;
}

bool Histogram::update(std::span<const float> x, const Layout& layout, int threads) {
    const auto size = static_cast<std::int64_t>(x.size());
    const auto count = static_cast<std::int64_t>(channels.size());
    check_layout(layout, size, count, "Histogram.update");
    if (size == 0) return true;
    std::atomic<bool> finite = true;
    // Sums of integers do not depend on the order, so tasks may be shared among workers as they come.
    if (count == 1) {
        const std::int64_t tasks = chunk_count(size, fold_elements);
        const auto workers = static_cast<std::size_t>(worker_count(tasks, threads));
        std::vector<Channel> parts(workers);
        parallel_for(tasks, threads, [&](std::int64_t task, int worker) {
            const std::int64_t begin = task * fold_elements;
            Table& table = Table::mine();
            table.count(&x[begin], std::min(fold_elements, size - begin));
            if (!table.fold(parts[worker])) finite = false;
        });
        if (finite)
            for (const Channel& part : parts) channels[0].merge(part);
        return finite;
    }
    constexpr std::int64_t neighbours = BesideTables::most_channels;
    const std::int64_t tasks = chunk_count(count, neighbours);
    std::vector<Channel> update(channels.size());
    parallel_for(tasks, threads, [&](std::int64_t task, int) {
        const std::int64_t first = task * neighbours, last = std::min(first + neighbours, count);
        if (!count_channels(x, layout, first, last, Table::mine(), update)) finite = false;
    });
    if (!finite) return false;
    for (std::size_t c = 0; c < update.size(); ++c) {
        if (channels[c].count == 0)
            channels[c] = std::move(update[c]);
        else
            channels[c].merge(update[c]);
    }
    return true;
}

void Histogram::merge(const Histogram& other) {
    require(other.channels.size() == channels.size(), "Histogram.merge", "both must have the same number of channels",
            std::to_string(channels.size()) + " and " + std::to_string(other.channels.size()));
    for (std::size_t c = 0; c < channels.size(); ++c) channels[c].merge(other.channels[c]);
}

}  // namespace leadline::observers
