#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "leadline/observers.hpp"
#include "simd.hpp"

// How a histogram's elements are counted: in tables with a cell for each sign, exponent and top of the mantissa.
namespace leadline::observers {

inline constexpr int lanes = simd::register_lanes;
using Floats = simd::Register<float>;
using Words = simd::Register<std::uint32_t>;

inline constexpr std::uint32_t magnitude_mask = 0x7fffffffu;
inline constexpr std::uint32_t infinity_bits = 0x7f800000u;
inline constexpr std::uint32_t m_mask = (1u << low_bits) - 1;
inline constexpr std::int64_t cells_of_sign = 4096;

// {m sum (40 bits) and count (24 bits), second}, added in one 128-bit operation. The 40 bits bound the elements that are
// counted between two foldings.
struct Line {
    std::uint64_t sum, second;
};
inline constexpr std::int64_t fold_elements = std::int64_t{1} << 17;
inline constexpr std::uint32_t count_one = 1u << 8;  // bit 40, seen in the upper 32-bit half

template <class Half>
[[gnu::always_inline]] inline void bump(char* line, Half amount) {
    using Pair = simd::Vector<std::uint64_t, 2>;
    simd::store(line, simd::load<Pair>(line) + std::bit_cast<Pair>(amount));
}

// Each element becomes {m, count, second, 0} in four 32-bit lanes, and is added to the line that lies `offset` behind.
[[gnu::always_inline]] inline void add(char* lines, Words bits, Words offset) {
    const Words m = bits & m_mask, a = (m + 16) >> 5, square = a * a;
    const Words one = simd::fill<Words>(count_one), none{};
    alignas(sizeof(Words)) std::uint32_t at[lanes];
    simd::store(at, offset);
#if defined(__AVX2__)
    const Words m_low = __builtin_shufflevector(m, one, 0, 8, 1, 9, 4, 12, 5, 13);
    const Words m_high = __builtin_shufflevector(m, one, 2, 10, 3, 11, 6, 14, 7, 15);
    const Words s_low = __builtin_shufflevector(square, none, 0, 8, 1, 9, 4, 12, 5, 13);
    const Words s_high = __builtin_shufflevector(square, none, 2, 10, 3, 11, 6, 14, 7, 15);
    const Words amounts[4] = {__builtin_shufflevector(m_low, s_low, 0, 1, 8, 9, 4, 5, 12, 13),
                              __builtin_shufflevector(m_low, s_low, 2, 3, 10, 11, 6, 7, 14, 15),
                              __builtin_shufflevector(m_high, s_high, 0, 1, 8, 9, 4, 5, 12, 13),
                              __builtin_shufflevector(m_high, s_high, 2, 3, 10, 11, 6, 7, 14, 15)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        bump(lines + at[k], __builtin_shufflevector(amounts[k], amounts[k], 0, 1, 2, 3));
        bump(lines + at[k + 4], __builtin_shufflevector(amounts[k], amounts[k], 4, 5, 6, 7));
    }
#else
    const Words m_low = __builtin_shufflevector(m, one, 0, 4, 1, 5);
    const Words m_high = __builtin_shufflevector(m, one, 2, 6, 3, 7);
    const Words s_low = __builtin_shufflevector(square, none, 0, 4, 1, 5);
    const Words s_high = __builtin_shufflevector(square, none, 2, 6, 3, 7);
    bump(lines + at[0], __builtin_shufflevector(m_low, s_low, 0, 1, 4, 5));
    bump(lines + at[1], __builtin_shufflevector(m_low, s_low, 2, 3, 6, 7));
    bump(lines + at[2], __builtin_shufflevector(m_high, s_high, 0, 1, 4, 5));
    bump(lines + at[3], __builtin_shufflevector(m_high, s_high, 2, 3, 6, 7));
#endif
}

struct Seen {
    float lo = std::numeric_limits<float>::infinity();
    float hi = -std::numeric_limits<float>::infinity();
    std::uint32_t smallest = magnitude_mask;  // of the nonzero magnitudes' bits, less one
    std::uint32_t largest = 0;                // of the magnitudes' bits

    void take(float low, float high, std::uint32_t less, std::uint32_t most) {
        lo = low < lo ? low : lo, hi = high > hi ? high : hi;
        smallest = std::min(smallest, less), largest = std::max(largest, most);
    }
    bool finite() const { return largest < infinity_bits; }
};
// The same, lane by lane.
struct SeenLanes {
    Floats lo = simd::fill<Floats>(Seen().lo), hi = simd::fill<Floats>(Seen().hi);
    Words smallest = simd::fill<Words>(Seen().smallest), largest{};

    [[gnu::always_inline]] Words take(Floats v) {  // gives the bits back
        lo = simd::min(v, lo), hi = simd::max(v, hi);
        const Words bits = std::bit_cast<Words>(v), magnitude = bits & magnitude_mask;
        smallest = simd::min(magnitude - 1, smallest);
        largest = simd::max(magnitude, largest);
        return bits;
    }
};

// The counts of one channel, moved from cells of `lines` lines each, which are empty then. All `counted` were finite.
template <int lines>
void fold_cells(Line* cells, const Seen& seen, std::int64_t counted, Channel& channel) {
    const auto take = [cells](std::int64_t cell) {
        Line* line = cells + cell * lines;
        Bucket sum;
        for (int k = 0; k < lines; ++k) {
            sum.count += line[k].sum >> 40, sum.first += line[k].sum & ((std::uint64_t{1} << 40) - 1);
            sum.second += line[k].second;
        }
        if (sum.count) std::fill_n(line, lines, Line{});
        return sum;
    };
    channel.lo = std::min(channel.lo, seen.lo + 0.0f), channel.hi = std::max(channel.hi, seen.hi + 0.0f);
    channel.count += static_cast<std::uint64_t>(counted);
    for (int sign = 0; sign < 2; ++sign) {
        channel.zeros += take(sign * cells_of_sign).count;
        if (seen.largest < (1u << low_bits) || !(sign ? seen.lo < 0.0f : seen.hi > 0.0f)) continue;
        const auto first = std::max(1, static_cast<std::int32_t>((seen.smallest + 1) >> low_bits));
        const auto last = static_cast<std::int32_t>(seen.largest >> low_bits);
        Bucket* into = channel.sides[sign].cover(first, last + 1);
        for (std::int32_t key = first; key <= last; ++key, ++into) {
            const Bucket counted_here = take(sign * cells_of_sign + key);
            into->count += counted_here.count, into->first += counted_here.first, into->second += counted_here.second;
        }
    }
}

// The table of one worker for a run of one channel. A cell holds four lines, so that equal neighbours (zeros after a
// ReLU) do not wait for one another's stores.
class Table {
   public:
    // The table of the calling thread, empty. It is kept: clearing half a megabyte would outweigh a small array.
    static Table& mine() {
        thread_local Table table;
        if (table.dirty_) table.clear();
        return table;
    }

    // Counts n elements; n over all calls between two folds must not exceed fold_elements.
    void count(const float* x, std::int64_t n) {
        dirty_ = true;
        char* lines = reinterpret_cast<char*>(lines_.data());  // once: the table is thread-local, and slow to find
        Words line{};
        for (int k = 0; k < lanes; ++k) line[k] = static_cast<std::uint32_t>(k % 4 * sizeof(Line));
        SeenLanes seen;
        std::int64_t i = 0;
        for (; i + lanes <= n; i += lanes) {
            const Words bits = seen.take(simd::load<Floats>(x + i));
            add(lines, bits, (bits >> low_bits) * (4 * sizeof(Line)) + line);
        }
        for (int k = 0; k < lanes; ++k) seen_.take(seen.lo[k], seen.hi[k], seen.smallest[k], seen.largest[k]);
        for (; i < n; ++i) {
            const auto bits = std::bit_cast<std::uint32_t>(x[i]);
            seen_.take(x[i], x[i], (bits & magnitude_mask) - 1, bits & magnitude_mask);
            const std::uint32_t m = bits & m_mask, a = (m + 16) >> 5;
            Line& to = lines_[(bits >> low_bits) * 4 + (i & 3)];
            to.sum += m | (std::uint64_t{count_one} << 32);
            to.second += std::uint64_t{a} * a;
        }
        counted_ += n;
    }

    // Moves what was counted into `channel` and empties the table. Returns false, leaving `channel` in an unspecified
    // state, if anything was NaN or infinite.
    bool fold(Channel& channel) {
        const bool good = seen_.finite();
        if (!good) clear();
        else if (counted_) fold_cells<4>(lines_.data(), seen_, counted_, channel);
        seen_ = {}, counted_ = 0, dirty_ = false;
        return good;
    }

    std::vector<float> gathered;  // channels brought together before they are counted, kept like the table

   private:
    void clear() {
        std::fill(lines_.begin(), lines_.end(), Line{});
        seen_ = {}, counted_ = 0, dirty_ = false;
    }

    std::vector<Line> lines_ = std::vector<Line>(2 * cells_of_sign * 4);
    Seen seen_;
    std::int64_t counted_ = 0;
    bool dirty_ = false;  // stays set when an exception ends a pass
};

// The tables of one worker for channels that lie beside one another. An element is followed by other channels', so a cell
// needs one line. Tables lie a little apart, so that their like cells do not compete for the same places of a cache.
class BesideTables {
   public:
    static constexpr int most_channels = 64;

    static BesideTables& mine() {
        thread_local BesideTables tables;
        if (!tables.lines_) throw std::bad_alloc();
        if (tables.dirty_) tables.clear();
        return tables;
    }

    // Counts rows of `width` channels (from `lanes` to most_channels), `stride` values apart; at most fold_elements rows
    // before the next fold. A block of rows is asked of memory in its order before it is counted a register at a time.
    void count(const float* x, std::int64_t stride, std::int64_t width, std::int64_t rows) {
        dirty_ = true;
        char* lines = reinterpret_cast<char*>(lines_.get());
        for (std::int64_t first = 0; first < rows; first += block_rows) {
            const std::int64_t block = std::min(block_rows, rows - first);
            const float* begin = x + first * stride;
            for (std::int64_t row = 0; row < block; ++row)
                for (std::int64_t c = 0; c < width; c += 16) __builtin_prefetch(begin + row * stride + c, 0, 2);
            for (std::int64_t c = 0; c < width; c += lanes) {
                Words table{};
                for (int k = 0; k < lanes; ++k) table[k] = static_cast<std::uint32_t>((c + k) * pitch * sizeof(Line));
                SeenLanes seen;
                const float* from = begin + place(c, width);
                for (std::int64_t row = 0; row < block; ++row, from += stride) {
                    const Words bits = seen.take(simd::load<Floats>(from));
                    add(lines, bits, (bits >> low_bits) * sizeof(Line) + table);
                }
                for (int k = 0; k < lanes; ++k)
                    seen_[c + k].take(seen.lo[k], seen.hi[k], seen.smallest[k], seen.largest[k]);
            }
        }
        counted_ += rows;
    }

    // Moves what was counted into `width` channels and empties the tables. Returns false, leaving the channels in an
    // unspecified state, if anything was NaN or infinite.
    bool fold(Channel* into, std::int64_t width) {
        const bool good = std::all_of(seen_, seen_ + most_channels, [](const Seen& seen) { return seen.finite(); });
        if (!good) {
            clear();
            return false;
        }
        Channel dropped;
        for (std::int64_t c = 0; c < width; c += lanes)
            for (int k = 0; k < lanes; ++k) {
                const std::int64_t channel = place(c, width) + k;
                fold_cells<1>(&lines_[(c + k) * pitch], seen_[c + k], counted_, channel < c ? dropped : into[channel]);
            }
        forget();
        return true;
    }

   private:
    static constexpr std::int64_t pitch = 2 * cells_of_sign + 36, block_rows = 128;

    // The first channel of a register. The last register reaches back: some channels are counted twice, and once dropped.
    static std::int64_t place(std::int64_t c, std::int64_t width) { return std::min(c, width - lanes); }
    void forget() {
        std::fill_n(seen_, most_channels, Seen{});
        counted_ = 0, dirty_ = false;
    }
    void clear() {
        std::fill_n(lines_.get(), most_channels * pitch, Line{});
        forget();
    }

    struct Free {
        void operator()(Line* lines) const { std::free(lines); }
    };
    // Eight megabytes, of which few pages are ever touched.
    std::unique_ptr<Line[], Free> lines_{static_cast<Line*>(std::calloc(most_channels * pitch, sizeof(Line)))};
    Seen seen_[most_channels];
    std::int64_t counted_ = 0;
    bool dirty_ = false;
};

}  // namespace leadline::observers
