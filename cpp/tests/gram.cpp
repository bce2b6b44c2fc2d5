#include "leadline/gram.hpp"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "gram_slab.hpp"
#include "testing.hpp"

using namespace leadline;

TEST(gram_of_rows_and_patches) {
    for (auto [rows, features] : {std::pair<std::int64_t, std::int64_t>{0, 3}, {1, 1}, {1030, 7}, {5, 200}, {33, 400}}) {
        const auto x = normal(static_cast<std::size_t>(rows * features));
        const auto n = static_cast<std::size_t>(features);
        std::vector<double> sum(n), second(n * n), sum3(n), second3(n * n);
        CHECK(gram::update(x, rows, features, sum, second, 1) && gram::update(x, rows, features, sum3, second3, 3));
        gram::mirror(second, 1, features, 2), gram::mirror(second3, 1, features, 1);
        CHECK(sum == sum3 && second == second3);
        for (std::size_t i = 0; i < n; i += 3)
            for (std::size_t j = 0; j < n; j += 5) {
                double expected = 0.0;
                for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r)
                    expected += static_cast<double>(x[r * n + i]) * static_cast<double>(x[r * n + j]);
                CHECK(std::fabs(expected - second[i * n + j]) <= 1e-5 * (1.0 + 3.0 * static_cast<double>(rows)));
            }
    }
    // batch, channels, height, width, groups, kernel, stride, dilation, pads (top, left, bottom, right)
    for (const gram::Conv& conv : {gram::Conv{2, 3, 9, 7, 1, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1},
                                   gram::Conv{1, 1, 8, 8, 5, 3, 3, 2, 1, 1, 2, 0, 2, 1, 0},
                                   gram::Conv{1, 2, 1, 1, 2, 1, 1, 5, 5, 1, 1, 3, 3, 3, 3},
                                   gram::Conv{1, 1, 2, 2, 1, 5, 5, 1, 1, 1, 1, 0, 0, 0, 0}}) {
        const auto x = normal(static_cast<std::size_t>(conv.batch * conv.groups * conv.channels * conv.height * conv.width));
        const auto n = static_cast<std::size_t>(conv.groups * conv.features());
        std::vector<double> sum(n), second(n * static_cast<std::size_t>(conv.features())), other(second), total(sum);
        CHECK(gram::update_conv(x, conv, sum, second, 1) && gram::update_conv(x, conv, total, other, 3));
        CHECK(sum == total && second == other);
    }
    // A pivot is taken off before the products.
    const std::vector<float> far{1000.0f, 2.0f, 1001.0f, 4.0f}, pivot{1000.0f, 0.0f};
    std::vector<double> means(2), about(4), planes(2), pixels(4);
    CHECK(gram::update(far, 2, 2, means, about, 1, pivot));
    CHECK(means[0] == 2001.0 && means[1] == 6.0 && about[0] == 1.0 && about[1] == 4.0 && about[3] == 20.0);
    const gram::Conv pointwise{2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0};
    CHECK(gram::update_conv(far, pointwise, planes, pixels, 1, pivot) && planes == means && pixels[0] == 1.0 && pixels[1] == 4.0);
    CHECK(refused([&] { gram::update(far, 2, 2, means, about, 1, std::span(far).first(1)); }, "pivot"));
    std::vector<float> bad{1.0f, std::numeric_limits<float>::infinity()};
    std::vector<double> sum(2), second(4);
    CHECK(!gram::update(bad, 1, 2, sum, second, 1) && sum[0] == 0.0 && second[0] == 0.0);
    CHECK(refused([&] { gram::update(bad, 2, 2, sum, second, 1); }, "number of features"));
}

#if defined(__FMA__)
TEST(kernels_give_the_same_bits) {
    if (!__builtin_cpu_supports("avx512f")) return;
    const auto a = normal(gram::panel * 70), b = normal(gram::panel * 70);
    for (const bool same : {false, true})
        for (const std::int64_t width : {1, 16, 17, 40, 48})
            for (const std::int64_t height : {1, 9, 48}) {
                std::vector<float> one(gram::panel * gram::panel, 0.5f), other(one);
                const float* right = same ? a.data() : b.data();
                gram::multiply({a.data(), right, 70, height, width, one.data()});
                gram::multiply_512({a.data(), right, 70, height, width, other.data()});
                for (std::int64_t i = 0; i < height; ++i)
                    for (std::int64_t j = same ? i : 0; j < width; ++j)
                        CHECK(one[i * gram::panel + j] == other[i * gram::panel + j]);
            }
}
#endif
