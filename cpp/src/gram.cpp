#include "leadline/gram.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "gram_slab.hpp"
#include "leadline/error.hpp"
#include "parallel.hpp"

namespace leadline::gram {
namespace {

// The pivot of each of `count` features or channels: 0 where there is none.
std::vector<float> checked(std::span<const float> pivot, std::int64_t count) {
    require(pivot.empty() || static_cast<std::int64_t>(pivot.size()) == count, "Gram.update",
            "there must be a pivot for each feature", std::to_string(pivot.size()));
    std::vector<float> each(static_cast<std::size_t>(count), 0.0f);
    std::copy(pivot.begin(), pivot.end(), each.begin());
    return each;
}

bool all_finite(std::span<const double> values) {
    return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

// Rows of kernel offset (ky, kx) of one input plane, for output pixels [begin, end), zeros where the padding is, less
// the pivot.
void fill_feature(const float* plane, const Conv& conv, std::int64_t ky, std::int64_t kx, std::int64_t begin,
                  std::int64_t end, float pivot, float* to) {
    const std::int64_t out_w = conv.out_w(), stride = conv.stride_w;
    const std::int64_t shift = kx * conv.dilation_w - conv.pad_left;
    // Output columns whose input column shift + column * stride lies in the plane.
    const std::int64_t inside = shift < 0 ? (stride - 1 - shift) / stride : 0;
    const std::int64_t outside = shift < conv.width ? (conv.width - 1 - shift) / stride + 1 : 0;
    while (begin < end) {
        const std::int64_t oy = begin / out_w, ox = begin % out_w, n = std::min(end - begin, out_w - ox);
        const std::int64_t y = oy * conv.stride_h - conv.pad_top + ky * conv.dilation_h;
        const bool padding = y < 0 || y >= conv.height;
        const std::int64_t first = padding ? n : std::clamp<std::int64_t>(inside - ox, 0, n);
        const std::int64_t last = std::clamp<std::int64_t>(outside - ox, first, n);
        const float* from = plane + y * conv.width + shift + ox * stride;
        std::fill(to, to + first, 0.0f - pivot);
        if (stride == 1)
            for (std::int64_t i = first; i < last; ++i) to[i] = from[i] - pivot;
        else
            for (std::int64_t i = first; i < last; ++i) to[i] = from[i * stride] - pivot;
        std::fill(to + last, to + n, 0.0f - pivot);
        to += n, begin += n;
    }
}

double sum_of(const float* x, std::int64_t n) {
    double parts[8] = {};
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; ++k) parts[k] += static_cast<double>(x[i + k]);
    for (; i < n; ++i) parts[0] += static_cast<double>(x[i]);
    return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

// Sum of a[i] b[i], in float over eight lanes.
float dot(const float* a, const float* b, std::int64_t n) {
    using Lanes = simd::Register<float>;
    constexpr int lanes = simd::register_lanes;
    Lanes sums[4]{};
    std::int64_t i = 0;
    for (; i + 4 * lanes <= n; i += 4 * lanes)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
            sums[k] = simd::multiply_add(simd::load<Lanes>(a + i + k * lanes), simd::load<Lanes>(b + i + k * lanes), sums[k]);
    const Lanes all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float total = 0.0f;
    for (int k = 0; k < lanes; ++k) total += all[k];
    for (; i < n; ++i) total += a[i] * b[i];
    return total;
}

// Features up to which single products cost less than panels.
constexpr std::int64_t few_features = 16;

// Output pixels [begin, end) of one image and one group, a run of them for each feature, less the channels' pivots.
struct Patches {
    const Conv& conv;
    const float* image;  // the group's first channel
    std::int64_t begin, end;
    const float* pivot;  // of each channel

    std::int64_t samples() const { return end - begin; }
    // Runs of features [first, last), kept until the thread's next call, and their sums.
    const float* fill(std::int64_t first, std::int64_t last, double* sum) const {
        const std::int64_t taps = conv.kernel_h * conv.kernel_w, plane = conv.height * conv.width;
        thread_local std::vector<float> room;
        room.resize(std::max(room.size(), static_cast<std::size_t>((last - first) * samples())));
        for (std::int64_t f = first; f < last; ++f) {
            const std::int64_t c = f / taps, tap = f % taps;
            float* run = &room[(f - first) * samples()];
            fill_feature(image + c * plane, conv, tap / conv.kernel_w, tap % conv.kernel_w, begin, end, pivot[c], run);
            sum[f] += sum_of(run, samples()) + static_cast<double>(samples()) * static_cast<double>(pivot[c]);
        }
        return room.data();
    }
    // The panel that begins with feature `first`. What is read as it lies is not copied before.
    void pack(Slab& slab, std::int64_t first, double* sum) const {
        const std::int64_t last = std::min(first + panel, conv.features());
        std::array<const float*, panel> runs{};
        std::array<float, panel> less{};
        const bool copied = !conv.pointwise();
        const float* filled = copied ? fill(first, last, sum) : nullptr;
        for (std::int64_t f = first; f < last; ++f) {
            runs[f - first] = copied ? filled + (f - first) * samples() : image + f * conv.height * conv.width + begin;
            less[f - first] = copied ? 0.0f : pivot[f];
            if (!copied) sum[f] += sum_of(runs[f - first], samples());
        }
        slab.pack_runs(runs, less, first);
    }
    void add_few(double* sum, double* second) const {
        const std::int64_t features = conv.features();
        const float* runs = fill(0, features, sum);
        for (std::int64_t i = 0; i < features; ++i)
            for (std::int64_t j = i; j < features; ++j)
                second[i * features + j] +=
                    static_cast<double>(dot(runs + i * samples(), runs + j * samples(), samples()));
    }
};

}  // namespace

namespace {

// Fewer multiplications than these are done before anybody could give them up.
constexpr std::int64_t long_work = std::int64_t{1} << 30;

// Calls add(watch). Where that takes long and may be given up, sums and upper triangles are copied before, and put back
// if it throws.
template <class Add>
void all_or_nothing(std::int64_t multiplications, std::int64_t features, std::span<double> sum,
                    std::span<double> second, Add&& add) {
    Watch watch;
    if (!watch.watches() || multiplications < long_work) return add(nullptr);
    const auto each_row = [&](auto&& body) {
        body(sum);
        for (std::int64_t row = 0; row < static_cast<std::int64_t>(sum.size()); ++row) {
            const std::int64_t first = row % features / panel * panel;
            body(second.subspan(row * features + first, features - first));
        }
    };
    std::vector<double> before;
    each_row([&](std::span<double> row) { before.insert(before.end(), row.begin(), row.end()); });
    try {
        add(&watch);
    } catch (...) {
        auto from = before.begin();
        each_row([&](std::span<double> row) {
            std::copy_n(from, row.size(), row.begin());
            from += static_cast<std::ptrdiff_t>(row.size());
        });
        throw;
    }
}

}  // namespace

bool update(std::span<const float> x, std::int64_t rows, std::int64_t features, std::span<double> sum,
            std::span<double> second, int threads, std::span<const float> pivot) {
    const auto size = static_cast<std::int64_t>(x.size()), expected = static_cast<std::int64_t>(sum.size());
    require(rows >= 0 && features == expected &&
                (features == 0 ? size == 0 : size / features == rows && size % features == 0) &&
                static_cast<std::int64_t>(second.size()) == expected * expected,
            "Gram.update", "x must have the Gram's number of features", std::to_string(features));
    const std::vector<float> pivots = checked(pivot, features);
    if (size == 0) return true;
    // Means first, which also finds NaN and infinity before anything is changed. Columns in tasks of 256, rows in order.
    constexpr std::int64_t columns = 256;
    std::vector<double> total(sum.size(), 0.0);
    parallel_for(chunk_count(features, columns), threads, [&](std::int64_t task, int) {
        const std::int64_t first = task * columns, last = std::min(first + columns, features);
        std::int64_t r = 0;
        for (const float* row = x.data(); r + 4 <= rows; r += 4, row += 4 * features)
            for (std::int64_t f = first; f < last; ++f) {
                const double one = row[f], two = row[features + f], three = row[2 * features + f];
                total[f] += (one + two) + (three + static_cast<double>(row[3 * features + f]));
            }
        for (; r < rows; ++r)
            for (std::int64_t f = first; f < last; ++f) total[f] += static_cast<double>(x[r * features + f]);
    });
    if (!all_finite(total)) return false;
    const UpperSquares squares(features);
    all_or_nothing(rows * features * features, features, sum, second, [&](Watch* watch) {
        for (std::size_t f = 0; f < sum.size(); ++f) sum[f] += total[f];
        Slab slab;
        for (std::int64_t row = 0; row < rows; row += slab_rows) {
            slab.resize(features, std::min(slab_rows, rows - row));
            const auto pack = [&](std::int64_t task, int) {
                const std::int64_t first = task * square, last = std::min(first + square, features);
                slab.pack_rows(&x[row * features], features, pivots.data(), first, last);
            };
            const auto add = [&](std::int64_t task, int) {
                const auto [i, j] = squares.at(task);
                slab.add_square(i, j, second.data());
            };
            parallel_for(squares.side, threads, pack, watch);
            parallel_for(squares.count(), threads, add, watch);
        }
    });
    return true;
}

bool update_conv(std::span<const float> x, const Conv& conv, std::span<double> sum, std::span<double> second,
                 int threads, std::span<const float> pivot) {
    const std::int64_t features = conv.features(), pixels = conv.out_h() * conv.out_w();
    const std::int64_t plane = conv.height * conv.width, image = conv.groups * conv.channels * plane;
    require(static_cast<std::int64_t>(x.size()) == conv.batch * image &&
                static_cast<std::int64_t>(sum.size()) == conv.groups * features &&
                static_cast<std::int64_t>(second.size()) == conv.groups * features * features,
            "ConvGram.update", "x must have the shape that the convolution was made for", std::to_string(x.size()));
    const std::vector<float> pivots = checked(pivot, conv.groups * conv.channels);
    std::atomic<bool> finite = true;
    parallel_for(chunk_count(static_cast<std::int64_t>(x.size()), chunk_elements), threads, [&](std::int64_t task, int) {
        const std::int64_t begin = task * chunk_elements;
        const std::int64_t n = std::min(chunk_elements, static_cast<std::int64_t>(x.size()) - begin);
        if (!std::isfinite(sum_of(&x[begin], n))) finite = false;
    });
    if (!finite) return false;
    const UpperSquares squares(features);
    const std::int64_t panels = chunk_count(features, panel);
    const auto each_slab = [&](std::int64_t group, auto&& body) {  // body(patches)
        const std::int64_t first = group * conv.channels;
        for (std::int64_t b = 0; b < conv.batch; ++b)
            for (std::int64_t p = 0; p < pixels; p += slab_rows)
                body(Patches{conv, &x[b * image + first * plane], p, std::min(p + slab_rows, pixels), &pivots[first]});
    };
    const auto add_groups = [&](Watch* watch) {  // a group is a task
        const auto add_group = [&](std::int64_t g, int) {
            thread_local Slab slab;
            double *means = &sum[g * features], *moments = &second[g * features * features];
            each_slab(g, [&](const Patches& patches) {
                if (watch) watch->look();
                if (features <= few_features) return patches.add_few(means, moments);
                slab.resize(features, patches.samples());
                for (std::int64_t p = 0; p < panels; ++p) patches.pack(slab, p * panel, means);
                for (std::int64_t t = 0; t < squares.count(); ++t) {
                    const auto [i, j] = squares.at(t);
                    slab.add_square(i, j, moments);
                }
            });
        };
        parallel_for(conv.groups, threads, add_group, watch);
    };
    const auto add_squares = [&](Watch* watch) {  // a square of the only group's matrix is a task
        Slab slab;
        each_slab(0, [&](const Patches& patches) {
            slab.resize(features, patches.samples());
            const auto pack = [&](std::int64_t p, int) { patches.pack(slab, p * panel, sum.data()); };
            const auto add = [&](std::int64_t t, int) {
                const auto [i, j] = squares.at(t);
                slab.add_square(i, j, second.data());
            };
            parallel_for(panels, threads, pack, watch);
            parallel_for(squares.count(), threads, add, watch);
        });
    };
    const std::int64_t multiplications = conv.batch * conv.groups * pixels * features * features;
    all_or_nothing(multiplications, features, sum, second, [&](Watch* watch) {
        conv.groups > 1 || features <= few_features ? add_groups(watch) : add_squares(watch);
    });
    return true;
}

void mirror(std::span<double> second, std::int64_t groups, std::int64_t features, int threads) {
    require(static_cast<std::int64_t>(second.size()) == groups * features * features, "Gram.matrix",
            "the array must hold groups x features x features", std::to_string(second.size()));
    parallel_for(groups * chunk_count(features, square), threads, [&](std::int64_t task, int) {
        const std::int64_t side = chunk_count(features, square), first = task % side * square;
        double* matrix = &second[task / side * features * features];
        for (std::int64_t i = first; i < std::min(first + square, features); ++i)
            for (std::int64_t j = 0; j < i; ++j) matrix[i * features + j] = matrix[j * features + i];
    });
}

}  // namespace leadline::gram
