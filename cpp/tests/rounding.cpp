#include "leadline/rounding.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "leadline/affine.hpp"
#include "testing.hpp"

using namespace leadline;

// Every solver on every shape, one thread and three: codes on the grid, the same, and no worse than they began.
TEST(rounding_in_every_shape) {
    using namespace rounding;
    for (auto [rows, features, groups, blocks] :
         {std::array<std::int64_t, 4>{1, 1, 1, 1}, {3, 130, 1, 1}, {70, 65, 1, 5}, {12, 9, 12, 1}, {34, 8, 2, 4}}) {
        const auto weight = normal(static_cast<std::size_t>(rows * features));
        const auto x = normal(static_cast<std::size_t>(groups * 200 * features));
        std::vector<double> gram(static_cast<std::size_t>(groups * features * features), 0.0);
        for (std::int64_t g = 0; g < groups; ++g)
            for (std::int64_t s = 0; s < 200; ++s)
                for (std::int64_t i = 1; i < features; ++i)  // the first input is dead
                    for (std::int64_t j = 1; j < features; ++j)
                        gram[(g * features + i) * features + j] +=
                            static_cast<double>(x[(g * 200 + s) * features + i]) * x[(g * 200 + s) * features + j] / 200;
        const std::vector<float> scale(static_cast<std::size_t>(rows * blocks), 0.3f);
        const std::vector<std::int32_t> zero(scale.size(), 1);
        const Problem problem{weight, gram, scale, zero, rows, features, groups, blocks, -8, 7};
        std::vector<std::int32_t> near(weight.size());
        for (std::size_t i = 0; i < near.size(); ++i)
            near[i] = static_cast<std::int32_t>(affine::nearest_step(weight[i], 0.3f, -9.0f, 6.0f)) + 1;
        std::vector<double> before(static_cast<std::size_t>(rows)), after(before);
        error(problem, near, before, 2);
        const auto outputs = normal(static_cast<std::size_t>(rows * 200));
        const Clipped clipped{x, outputs, 200, -0.5f, 1.0f};
        for (int solver = 0; solver < 5; ++solver) {
            std::vector<std::int32_t> first = near;
            for (int threads : {1, 3}) {
                std::vector<std::int32_t> codes = near;
                if (solver == 0) descend(problem, {}, codes, threads);
                if (solver == 1) descend(problem, {50, true}, codes, threads);
                if (solver == 2) gptq(problem, {}, codes, threads);
                if (solver == 3) adaround(problem, {40}, codes, threads);
                if (solver == 4) adaround(problem, {40}, codes, threads, &clipped);
                CHECK(std::all_of(codes.begin(), codes.end(), [](std::int32_t c) { return c >= -8 && c <= 7; }));
                if (threads == 1) first = codes;
                CHECK(codes == first);
                error(problem, codes, after, threads);
                for (std::size_t r = 0; solver < 2 && r < after.size(); ++r) CHECK(after[r] <= before[r] + 1e-9);
            }
        }
        CHECK(refused([&] { error(problem, near, std::span(after).first(0), 1); }, "out must hold"));
        std::vector<double> fisher(static_cast<std::size_t>(rows * rows), 0.2);
        for (std::int64_t r = 1; r < rows; ++r) fisher[r * rows + r] = 1.0;
        fisher[0] = 0.0;
        if (groups == 1) {
            std::vector<std::int32_t> codes = near;
            descend_coupled(problem, {}, fisher, codes);
            CHECK(std::all_of(codes.begin(), codes.end(), [](std::int32_t c) { return c >= -8 && c <= 7; }));
            CHECK(refused([&] { descend_coupled(problem, {}, std::span(fisher).first(0), codes); }, "rows x rows"));
        } else {
            CHECK(refused([&] { descend_coupled(problem, {}, fisher, near); }, "one group"));
        }
        const Clipped few{x, outputs, 199, 0.0f, 1.0f};
        CHECK(refused([&] { adaround(problem, {}, near, 1, &few); }, "samples must fit"));
    }
    const std::vector<float> none;
    std::vector<std::int32_t> codes;
    CHECK(refused([&] { descend({none, {}, none, codes, 1, 2, 1, 1, 0, 1}, {}, codes, 1); }, "must fit each other"));
}
