#pragma once
#include <cstdint>
#include <span>

// Second moments of a layer's inputs: sums over rows of x and of (x - pivot) (x - pivot)^T, in double, from float products
// over slabs of at most `slab_rows` rows. The state is two arrays of the caller: its size does not depend on the number
// of samples. A pivot near the mean, the same in all updates of a state, keeps what varies about a mean far larger than
// the deviation; without one it is zero.
namespace leadline::gram {

inline constexpr std::int64_t slab_rows = 1024;

// The geometry of a 2-D convolution; `channels` are the input channels of one group.
struct Conv {
    std::int64_t batch, channels, height, width, groups;
    std::int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    std::int64_t pad_top, pad_left, pad_bottom, pad_right;

    // Each feature is a channel's plane as it lies.
    bool pointwise() const {
        return kernel_h * kernel_w * stride_h * stride_w == 1 && pad_top + pad_left + pad_bottom + pad_right == 0;
    }
    std::int64_t features() const { return channels * kernel_h * kernel_w; }
    std::int64_t out_h() const { return reach(height + pad_top + pad_bottom, kernel_h, stride_h, dilation_h); }
    std::int64_t out_w() const { return reach(width + pad_left + pad_right, kernel_w, stride_w, dilation_w); }

   private:
    static std::int64_t reach(std::int64_t size, std::int64_t kernel, std::int64_t stride, std::int64_t dilation) {
        const std::int64_t room = size - (kernel - 1) * dilation - 1;
        return room < 0 ? 0 : room / stride + 1;
    }
};

// Adds the rows of x (rows x features, row-major) to `sum` (features) and to the upper triangle of `second`
// (features x features). Returns false, having changed nothing, if an element is NaN or infinite.
bool update(std::span<const float> x, std::int64_t rows, std::int64_t features, std::span<double> sum,
            std::span<double> second, int threads, std::span<const float> pivot = {});

// The same for every patch that the convolution sees in x (N, groups * channels, H, W), zero padding included, with one
// sum (groups x features) and one matrix (groups x features x features) per group. Features run as in the weight:
// channel, kernel row, kernel column. The pivot is of each channel of x.
bool update_conv(std::span<const float> x, const Conv& conv, std::span<double> sum, std::span<double> second,
                 int threads, std::span<const float> pivot = {});

// Copies the upper triangle of each of `groups` matrices to the lower one.
void mirror(std::span<double> second, std::int64_t groups, std::int64_t features, int threads);

}  // namespace leadline::gram
