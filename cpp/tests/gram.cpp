#include "leadline/gram.hpp"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

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
    std::vector<float> bad{1.0f, std::numeric_limits<float>::infinity()};
    std::vector<double> sum(2), second(4);
    CHECK(!gram::update(bad, 1, 2, sum, second, 1) && sum[0] == 0.0 && second[0] == 0.0);
    CHECK(refused([&] { gram::update(bad, 2, 2, sum, second, 1); }, "number of features"));
}
