#include "leadline/gram.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "leadline/error.hpp"
#include "parallel.hpp"

namespace leadline::gram {
namespace {

// Side of the squares that the matrix is cut into: each is one task, which adds its slabs in order, so that the result
// is the same for any number of threads.
constexpr std::int64_t square = 192;

using Slab = Eigen::Map<const Eigen::MatrixXf, Eigen::Unaligned, Eigen::OuterStride<>>;  // a column per row of data
using PatchSlab =
    Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>, Eigen::Unaligned,
               Eigen::OuterStride<>>;  // features x rows, stored a feature after another

// second[i0 : i0+h, j0 : j0+w] += slab slab^T, for the given square of the upper triangle.
template <class Features>
void add_square(const Features& slab, std::int64_t i0, std::int64_t j0, std::int64_t features, double* second) {
    const std::int64_t h = std::min(square, features - i0), w = std::min(square, features - j0);
    thread_local Eigen::MatrixXf product;
    product.resize(w, h);
    product.noalias() = slab.middleRows(j0, w) * slab.middleRows(i0, h).transpose();
    for (std::int64_t i = 0; i < h; ++i) {
        double* to = second + (i0 + i) * features + j0;
        const float* from = product.data() + i * w;
        for (std::int64_t j = 0; j < w; ++j) to[j] += static_cast<double>(from[j]);
    }
}

struct UpperSquares {
    std::int64_t side;
    explicit UpperSquares(std::int64_t features) : side(chunk_count(features, square)) {}
    std::int64_t count() const { return side * (side + 1) / 2; }
    // The i-th square of the upper triangle, row by row.
    std::pair<std::int64_t, std::int64_t> at(std::int64_t index) const {
        std::int64_t row = 0;
        while (index >= side - row) index -= side - row, ++row;
        return {row * square, (row + index) * square};
    }
};

bool all_finite(std::span<const double> values) {
    return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

// Rows of kernel offset (ky, kx) of one input plane, for output pixels [begin, end), zeros where the padding is.
void fill_feature(const float* plane, const Conv& conv, std::int64_t ky, std::int64_t kx, std::int64_t begin,
                  std::int64_t end, float* to) {
    const std::int64_t out_w = conv.out_w();
    while (begin < end) {
        const std::int64_t oy = begin / out_w, ox = begin % out_w, n = std::min(end - begin, out_w - ox);
        const std::int64_t y = oy * conv.stride_h - conv.pad_top + ky * conv.dilation_h;
        const std::int64_t x0 = ox * conv.stride_w - conv.pad_left + kx * conv.dilation_w;
        if (y < 0 || y >= conv.height) {
            std::fill(to, to + n, 0.0f);
        } else {
            const float* row = plane + y * conv.width;
            for (std::int64_t i = 0; i < n; ++i) {
                const std::int64_t x = x0 + i * conv.stride_w;
                to[i] = x >= 0 && x < conv.width ? row[x] : 0.0f;
            }
        }
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

// One slab of output pixels of one image and one group, as features x pixels.
struct Patches {
    std::vector<float> values;
    std::int64_t pixels = 0;

    void fill(const float* image, const Conv& conv, std::int64_t begin, std::int64_t end, std::int64_t channel) {
        const std::int64_t taps = conv.kernel_h * conv.kernel_w;
        for (std::int64_t tap = 0; tap < taps; ++tap)
            fill_feature(image + channel * conv.height * conv.width, conv, tap / conv.kernel_w, tap % conv.kernel_w,
                         begin, end, &values[(channel * taps + tap) * pixels]);
    }
    void resize(const Conv& conv, std::int64_t count) {
        pixels = count;
        values.resize(static_cast<std::size_t>(conv.features() * count));
    }
    PatchSlab view(const Conv& conv) const {
        return PatchSlab(values.data(), conv.features(), pixels, Eigen::OuterStride<>(pixels));
    }
    void add_sum(std::int64_t first, std::int64_t last, double* sum) const {
        for (std::int64_t f = first; f < last; ++f) sum[f] += sum_of(&values[f * pixels], pixels);
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
            const std::int64_t first = row % features / square * square;
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
            std::span<double> second, int threads) {
    const auto size = static_cast<std::int64_t>(x.size()), expected = static_cast<std::int64_t>(sum.size());
    require(rows >= 0 && features == expected &&
                (features == 0 ? size == 0 : size / features == rows && size % features == 0) &&
                static_cast<std::int64_t>(second.size()) == expected * expected,
            "Gram.update", "x must have the Gram's number of features", std::to_string(features));
    if (size == 0) return true;
    // Means first, which also finds NaN and infinity before anything is changed. Columns in tasks of 256, rows in order.
    constexpr std::int64_t columns = 256;
    std::vector<double> total(sum.size(), 0.0);
    parallel_for(chunk_count(features, columns), threads, [&](std::int64_t task, int) {
        const std::int64_t first = task * columns, last = std::min(first + columns, features);
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t f = first; f < last; ++f) total[f] += static_cast<double>(x[r * features + f]);
    });
    if (!all_finite(total)) return false;
    const UpperSquares squares(features);
    all_or_nothing(rows * features * features, features, sum, second, [&](Watch* watch) {
        for (std::size_t f = 0; f < sum.size(); ++f) sum[f] += total[f];
        const auto add_slabs = [&](std::int64_t task, int) {
            const auto [i, j] = squares.at(task);
            for (std::int64_t row = 0; row < rows; row += slab_rows) {
                if (watch) watch->look();
                const std::int64_t n = std::min(slab_rows, rows - row);
                const Slab slab(&x[row * features], features, n, Eigen::OuterStride<>(features));
                add_square(slab, i, j, features, second.data());
            }
        };
        parallel_for(squares.count(), threads, add_slabs, watch);
    });
    return true;
}

bool update_conv(std::span<const float> x, const Conv& conv, std::span<double> sum, std::span<double> second,
                 int threads) {
    const std::int64_t features = conv.features(), pixels = conv.out_h() * conv.out_w();
    const std::int64_t plane = conv.height * conv.width, image = conv.groups * conv.channels * plane;
    require(static_cast<std::int64_t>(x.size()) == conv.batch * image &&
                static_cast<std::int64_t>(sum.size()) == conv.groups * features &&
                static_cast<std::int64_t>(second.size()) == conv.groups * features * features,
            "ConvGram.update", "x must have the shape that the convolution was made for", std::to_string(x.size()));
    std::atomic<bool> finite = true;
    parallel_for(chunk_count(static_cast<std::int64_t>(x.size()), chunk_elements), threads, [&](std::int64_t task, int) {
        const std::int64_t begin = task * chunk_elements;
        const std::int64_t n = std::min(chunk_elements, static_cast<std::int64_t>(x.size()) - begin);
        if (!std::isfinite(sum_of(&x[begin], n))) finite = false;
    });
    if (!finite) return false;
    const UpperSquares squares(features);
    const auto each_slab = [&](auto&& body) {  // body(image, first pixel, past the last one)
        for (std::int64_t b = 0; b < conv.batch; ++b)
            for (std::int64_t p = 0; p < pixels; p += slab_rows) body(b, p, std::min(p + slab_rows, pixels));
    };
    const std::int64_t taps = conv.kernel_h * conv.kernel_w;
    const auto add_groups = [&](Watch* watch) {  // a group is a task
        const auto add_group = [&](std::int64_t g, int) {
            thread_local Patches patches;
            each_slab([&](std::int64_t b, std::int64_t begin, std::int64_t end) {
                if (watch) watch->look();
                patches.resize(conv, end - begin);
                for (std::int64_t c = 0; c < conv.channels; ++c)
                    patches.fill(&x[b * image + g * conv.channels * plane], conv, begin, end, c);
                patches.add_sum(0, features, &sum[g * features]);
                for (std::int64_t t = 0; t < squares.count(); ++t) {
                    const auto [i, j] = squares.at(t);
                    add_square(patches.view(conv), i, j, features, &second[g * features * features]);
                }
            });
        };
        parallel_for(conv.groups, threads, add_group, watch);
    };
    const auto add_squares = [&](Watch* watch) {  // a square of the only group's matrix is a task
        Patches patches;
        each_slab([&](std::int64_t b, std::int64_t begin, std::int64_t end) {
            patches.resize(conv, end - begin);
            const auto fill = [&](std::int64_t c, int) {
                patches.fill(&x[b * image], conv, begin, end, c);
                patches.add_sum(c * taps, (c + 1) * taps, sum.data());
            };
            const auto add = [&](std::int64_t t, int) {
                const auto [i, j] = squares.at(t);
                add_square(patches.view(conv), i, j, features, second.data());
            };
            parallel_for(conv.channels, threads, fill, watch);
            parallel_for(squares.count(), threads, add, watch);
        });
    };
    const std::int64_t multiplications = conv.batch * conv.groups * pixels * features * features;
    all_or_nothing(multiplications, features, sum, second, [&](Watch* watch) {
        conv.groups > 1 ? add_groups(watch) : add_squares(watch);
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
