#include "leadline/compensation.hpp"

#include <cmath>
#include <vector>

#include "reference.hpp"
#include "testing.hpp"

using namespace leadline;

// V = W + W (C - G) (G + lambda I)^-1, with the inverse by Gauss and Jordan.
TEST(weights_are_the_formulas) {
    for (const std::int64_t features : {1, 2, 40}) {
        const OwnedProblem quantised(35, features, 3, 1.0f), original(35, features, 4, 1.0f);
        const std::int64_t n = features;
        double mean = 0.0;
        for (std::int64_t i = 0; i < n; ++i) mean += quantised.gram[i * n + i] / static_cast<double>(n);
        std::vector<double> damped = quantised.gram;
        for (std::int64_t i = 0; i < n; ++i) damped[i * n + i] += 0.05 * mean;
        const auto inverted = inverse(damped, n);
        std::vector<float> out(quantised.weight.size());
        CHECK(compensation::compensate(quantised.weight, original.gram, quantised.gram, quantised.rows, features, 1,
                                       0.05, out, 2) == 0.05);
        for (std::int64_t row = 0; row < quantised.rows; ++row) {
            std::vector<double> error(static_cast<std::size_t>(n));
            for (std::int64_t i = 0; i < n; ++i)
                for (std::int64_t k = 0; k < n; ++k)
                    error[i] += quantised.weight[row * n + k] * (original.gram[k * n + i] - quantised.gram[k * n + i]);
            for (std::int64_t j = 0; j < n; ++j) {
                double wanted = quantised.weight[row * n + j];
                for (std::int64_t i = 0; i < n; ++i) wanted += error[i] * inverted[i * n + j];
                CHECK(std::fabs(out[row * n + j] - wanted) <= 1e-5 * (1.0 + std::fabs(wanted)));
            }
        }
    }
}

TEST(groups_have_their_own_grams) {
    const OwnedProblem first(3, 4, 5, 1.0f), second(3, 4, 6, 1.0f);
    std::vector<float> weight = first.weight, one(12), other(12), both(24);
    weight.insert(weight.end(), second.weight.begin(), second.weight.end());
    std::vector<double> gram = first.gram, cross = second.gram;
    gram.insert(gram.end(), second.gram.begin(), second.gram.end());
    cross.insert(cross.end(), first.gram.begin(), first.gram.end());
    compensation::compensate(weight, cross, gram, 6, 4, 2, 0.1, both, 2);
    compensation::compensate(first.weight, second.gram, first.gram, 3, 4, 1, 0.1, one, 1);
    compensation::compensate(second.weight, first.gram, second.gram, 3, 4, 1, 0.1, other, 1);
    one.insert(one.end(), other.begin(), other.end());
    CHECK(both == one);
    const auto call = [&] { compensation::compensate(weight, cross, gram, 6, 4, 4, 0.1, both, 1); };
    CHECK(refused(call, "must fit each other"));
}

// An input that is always zero takes no part, and equal moments change nothing.
TEST(dead_inputs_and_equal_moments) {
    const OwnedProblem alive(34, 8, 7, 1.0f);
    std::vector<double> gram = alive.gram;
    for (std::int64_t i = 0; i < 8; ++i) gram[i] = gram[i * 8] = 0.0;
    std::vector<float> out(alive.weight.size());
    CHECK(compensation::compensate(alive.weight, gram, gram, 34, 8, 1, 0.0, out, 2) > 0.0 && out == alive.weight);
}
