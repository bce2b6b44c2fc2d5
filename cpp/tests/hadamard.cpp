#include "leadline/hadamard.hpp"

#include <cmath>
#include <vector>

#include "testing.hpp"

using namespace leadline;

namespace {

template <class T>
void hadamard_in_every_layout() {
    using namespace hadamard;
    const std::vector<std::int8_t> regular = {-1, 1, 1, 1, 1, -1, 1, 1, 1, 1, -1, 1, 1, 1, 1, -1};
    for (std::int64_t doublings = 0; doublings < 7; ++doublings)
        for (std::int64_t blocks : {1, 3})
            for (bool based : {false, true})
                for (std::int64_t inner : {1, 3, 8, 19}) {
                    Plan plan;
                    plan.copies = blocks, plan.doublings = doublings;
                    if (based) plan.bases.push_back(base(regular, 4));
                    const std::int64_t n = plan.size();
                    const auto floats = normal(static_cast<std::size_t>(11 * n * inner));
                    const std::vector<T> x(floats.begin(), floats.end());
                    const std::vector<T> scale(static_cast<std::size_t>(n), T(1 / std::sqrt(double(plan.order()))));
                    const std::vector<T> one(static_cast<std::size_t>(n), T{1});
                    std::vector<std::int32_t> back(static_cast<std::size_t>(n));
                    for (std::int64_t i = 0; i < n; ++i) back[i] = static_cast<std::int32_t>(n - 1 - i);
                    std::vector<T> y(x.size()), again(x.size());
                    // The matrix is symmetric: twice is nothing, whatever is permuted in between and back.
                    apply<T>(plan, {scale, one, {}, back}, x, inner, y, 2);
                    apply<T>(plan, {scale, {}, back, {}}, y, inner, again, 1);
                    for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::fabs(again[i] - x[i]) < T(1e-4));
                    std::vector<T> place = x;
                    apply<T>(plan, {scale, one, {}, back}, place, inner, place, 1);
                    CHECK(place == y);
                    const std::span<const T> few(x.data(), x.size() - 1);
                    CHECK(refused([&] { apply<T>(plan, {scale, {}, {}, {}}, few, inner, y, 1); }, "whole rows"));
                    back[0] = static_cast<std::int32_t>(n);
                    CHECK(refused([&] { apply<T>(plan, {scale, {}, back, {}}, x, inner, y, 1); }, "stay inside"));
                    CHECK(refused([&] { apply<T>(plan, {{}, {}, {}, {}}, x, inner, y, 1); }, "a factor for each"));
                }
    CHECK(refused([&] { base(regular, 3); }, "square"));
}

}  // namespace

TEST(floats_in_every_layout) { hadamard_in_every_layout<float>(); }
TEST(doubles_in_every_layout) { hadamard_in_every_layout<double>(); }
