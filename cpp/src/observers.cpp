#include "leadline/observers.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

#include "parallel.hpp"
#include "simd.hpp"

namespace leadline::observers {
namespace {

constexpr int lanes = simd::register_lanes;
using Floats = simd::Register<float>;
using Words = simd::Register<std::uint32_t>;

constexpr std::uint32_t magnitude_mask = 0x7fffffffu;
constexpr std::uint32_t infinity_bits = 0x7f800000u;
constexpr std::uint32_t m_mask = (1u << low_bits) - 1;

// Counting table of one worker. A cell holds four lines so that equal neighbours (zeros after a ReLU) do not wait for
// one another's stores; a line is {m sum (40 bits) and count (24 bits), second}, added in one 128-bit operation.
// The 40 bits bound the elements counted between two foldings.
constexpr std::int64_t fold_elements = std::int64_t{1} << 17;
constexpr std::uint32_t count_one = 1u << 8;  // bit 40, seen in the upper 32-bit half

struct alignas(64) Cell {
    std::uint64_t line[4][2];
};

struct Seen {
    float lo = std::numeric_limits<float>::infinity();
    float hi = -std::numeric_limits<float>::infinity();
    std::uint32_t smallest = magnitude_mask;  // of the nonzero magnitudes' bits, less one
    std::uint32_t largest = 0;                // of the magnitudes' bits
};

class Table {
   public:
    Table() : cells_(new Cell[2 * 4096]()) {}

    // The table of the calling thread, empty. It is kept: clearing half a megabyte would outweigh a small array.
    static Table& mine() {
        thread_local Table table;
        if (table.dirty_) table.clear();
        return table;
    }

    // Counts n elements; n over all calls between two folds must not exceed fold_elements.
    void count(const float* x, std::int64_t n) {
        dirty_ = true;
        char* cells = reinterpret_cast<char*>(cells_.get());  // once: the table is thread-local, and slow to find
        auto lo = simd::fill<Floats>(seen_.lo), hi = simd::fill<Floats>(seen_.hi);
        auto smallest = simd::fill<Words>(seen_.smallest), largest = simd::fill<Words>(seen_.largest);
        std::int64_t i = 0;
        for (; i + lanes <= n; i += lanes) {
            const auto v = simd::load<Floats>(x + i);
            lo = simd::min(v, lo), hi = simd::max(v, hi);
            const Words bits = std::bit_cast<Words>(v), magnitude = bits & magnitude_mask;
            smallest = simd::min(magnitude - 1, smallest);
            largest = simd::max(magnitude, largest);
            add(cells, bits);
        }
        for (int k = 0; k < lanes; ++k) see(lo[k], hi[k], smallest[k], largest[k]);
        for (; i < n; ++i) {
            const auto bits = std::bit_cast<std::uint32_t>(x[i]);
            see(x[i], x[i], (bits & magnitude_mask) - 1, bits & magnitude_mask);
            const std::uint32_t m = bits & m_mask, a = (m + 16) >> 5;
            auto& line = cells_[bits >> low_bits].line[i & 3];
            line[0] += m | (std::uint64_t{count_one} << 32);
            line[1] += std::uint64_t{a} * a;
        }
        counted_ += n;
    }

    // Moves what was counted into `channel` and empties the table. Returns false, leaving `channel` in an unspecified
    // state, if anything was NaN or infinite.
    bool fold(Channel& channel) {
        const Seen seen = seen_;
        const std::int64_t counted = counted_;
        if (counted == 0) return true;
        if (seen.largest >= infinity_bits) {
            clear();
            return false;
        }
        channel.lo = std::min(channel.lo, seen.lo + 0.0f), channel.hi = std::max(channel.hi, seen.hi + 0.0f);
        channel.count += static_cast<std::uint64_t>(counted);
        for (int sign = 0; sign < 2; ++sign) {
            channel.zeros += take(cells_[sign << 12]).count;
            if (seen.largest < (1u << low_bits) || !(sign ? seen.lo < 0.0f : seen.hi > 0.0f)) continue;
            const auto first = std::max(1, static_cast<std::int32_t>((seen.smallest + 1) >> low_bits));
            const auto last = static_cast<std::int32_t>(seen.largest >> low_bits);
            Bucket* into = channel.sides[sign].cover(first, last + 1);
            for (std::int32_t key = first; key <= last; ++key, ++into) {
                const Bucket counted_here = take(cells_[(sign << 12) + key]);
                into->count += counted_here.count, into->first += counted_here.first;
                into->second += counted_here.second;
            }
        }
        seen_ = {}, counted_ = 0, dirty_ = false;
        return true;
    }

    std::vector<float> gathered;  // channels brought together before they are counted, kept like the table

   private:
    void clear() {
        std::fill_n(cells_.get(), 2 * 4096, Cell{});
        seen_ = {}, counted_ = 0, dirty_ = false;
    }

    void see(float lo, float hi, std::uint32_t smallest, std::uint32_t largest) {
        seen_.lo = lo < seen_.lo ? lo : seen_.lo, seen_.hi = hi > seen_.hi ? hi : seen_.hi;
        seen_.smallest = std::min(seen_.smallest, smallest), seen_.largest = std::max(seen_.largest, largest);
    }

    // Each element becomes {m, count, second, 0} in four 32-bit lanes, which is one line of the table.
    static void add(char* cells, Words bits) {
        const Words offset = (bits >> low_bits) * sizeof(Cell), m = bits & m_mask, a = (m + 16) >> 5, square = a * a;
        const Words one = simd::fill<Words>(count_one), none{};
        alignas(sizeof(Words)) std::uint32_t at[lanes];
        simd::store(at, offset);
#if defined(__AVX2__)
        const Words m_low = __builtin_shufflevector(m, one, 0, 8, 1, 9, 4, 12, 5, 13);
        const Words m_high = __builtin_shufflevector(m, one, 2, 10, 3, 11, 6, 14, 7, 15);
        const Words s_low = __builtin_shufflevector(square, none, 0, 8, 1, 9, 4, 12, 5, 13);
        const Words s_high = __builtin_shufflevector(square, none, 2, 10, 3, 11, 6, 14, 7, 15);
        bump(cells, at[0], at[4], 0, __builtin_shufflevector(m_low, s_low, 0, 1, 8, 9, 4, 5, 12, 13));
        bump(cells, at[1], at[5], 1, __builtin_shufflevector(m_low, s_low, 2, 3, 10, 11, 6, 7, 14, 15));
        bump(cells, at[2], at[6], 2, __builtin_shufflevector(m_high, s_high, 0, 1, 8, 9, 4, 5, 12, 13));
        bump(cells, at[3], at[7], 3, __builtin_shufflevector(m_high, s_high, 2, 3, 10, 11, 6, 7, 14, 15));
    }
    static void bump(char* cells, std::uint32_t first, std::uint32_t second, int lane, Words amounts) {
        bump(cells, first, lane, __builtin_shufflevector(amounts, amounts, 0, 1, 2, 3));
        bump(cells, second, lane, __builtin_shufflevector(amounts, amounts, 4, 5, 6, 7));
    }
#else
        const Words m_low = __builtin_shufflevector(m, one, 0, 4, 1, 5);
        const Words m_high = __builtin_shufflevector(m, one, 2, 6, 3, 7);
        const Words s_low = __builtin_shufflevector(square, none, 0, 4, 1, 5);
        const Words s_high = __builtin_shufflevector(square, none, 2, 6, 3, 7);
        bump(cells, at[0], 0, __builtin_shufflevector(m_low, s_low, 0, 1, 4, 5));
        bump(cells, at[1], 1, __builtin_shufflevector(m_low, s_low, 2, 3, 6, 7));
        bump(cells, at[2], 2, __builtin_shufflevector(m_high, s_high, 0, 1, 4, 5));
        bump(cells, at[3], 3, __builtin_shufflevector(m_high, s_high, 2, 3, 6, 7));
    }
#endif
    template <class Half>
    static void bump(char* cells, std::uint32_t offset, int lane, Half amount) {
        using Line = simd::Vector<std::uint64_t, 2>;
        char* at = cells + offset + lane * sizeof(Line);
        simd::store(at, simd::load<Line>(at) + std::bit_cast<Line>(amount));
    }

    static Bucket take(Cell& cell) {
        Bucket sum;
        if ((cell.line[0][0] | cell.line[1][0] | cell.line[2][0] | cell.line[3][0]) == 0) return sum;
        for (auto& line : cell.line) {
            sum.count += line[0] >> 40, sum.first += line[0] & ((std::uint64_t{1} << 40) - 1), sum.second += line[1];
        }
        cell = Cell{};
        return sum;
    }

    std::unique_ptr<Cell[]> cells_;
    Seen seen_;
    std::int64_t counted_ = 0;
    bool dirty_ = false;  // stays set when an exception ends a pass
};

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

// Counts channels [first, last) of x, side by side, so that every cache line of x is read once.
bool count_channels(std::span<const float> x, const Layout& layout, std::int64_t first, std::int64_t last, Table& table,
                    std::vector<Channel>& into) {
    constexpr std::int64_t direct = 512;       // shorter runs are gathered first
    constexpr std::int64_t gather_at = 16384;  // elements per channel
    bool good = true;
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
    constexpr std::int64_t neighbours = 64;
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
