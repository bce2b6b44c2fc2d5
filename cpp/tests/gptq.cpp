#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "leadline/rounding.hpp"
#include "reference.hpp"
#include "testing.hpp"

using namespace leadline;

namespace {

using Codes = std::vector<std::int32_t>;

// Optimal brain quantisation in a fixed order, which GPTQ is without its Cholesky factor and panels: round a weight,
// let those left make up for it by the inverse of the Hessian, and take it out of that.
Codes plain_gptq(const OwnedProblem& p, double damping, bool ordered) {
    const std::int64_t n = p.features;
    std::vector<std::int64_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    if (ordered)
        std::stable_sort(order.begin(), order.end(),
                         [&](std::int64_t a, std::int64_t b) { return p.gram[a * n + a] > p.gram[b * n + b]; });
    double mean = 0.0;
    for (std::int64_t i = 0; i < n; ++i) mean += p.gram[i * n + i] / static_cast<double>(n);
    std::vector<double> damped = p.gram;
    for (std::int64_t i = 0; i < n; ++i) damped[i * n + i] += damping * mean;
    const std::vector<double> whole = inverse(damped, n);
    Codes codes(p.weight.size());
    for (std::int64_t row = 0; row < p.rows; ++row) {
        std::vector<double> left = whole, w(p.weight.begin() + row * n, p.weight.begin() + (row + 1) * n);
        for (const std::int64_t i : order) {
            const double scale = p.scale[row], step = std::clamp(std::nearbyint(w[i] / scale),
                                                                 static_cast<double>(p.qmin - p.zero_point[row]),
                                                                 static_cast<double>(p.qmax - p.zero_point[row]));
            codes[row * n + i] = static_cast<std::int32_t>(step) + p.zero_point[row];
            const double error = (w[i] - scale * step) / left[i * n + i];
            for (std::int64_t k = 0; k < n; ++k) w[k] -= error * left[i * n + k];
            const std::vector<double> column(left.begin() + i * n, left.begin() + (i + 1) * n);
            for (std::int64_t a = 0; a < n; ++a)
                for (std::int64_t b = 0; b < n; ++b) left[a * n + b] -= column[a] * column[b] / column[i];
            for (std::int64_t k = 0; k < n; ++k) left[i * n + k] = left[k * n + i] = 0.0;
        }
    }
    return codes;
}

}  // namespace

// G = [2 1; 1 2], so that G^-1 = [2 -1; -1 2] / 3. The first weight, 0.4, becomes 0: its error over the diagonal is
// 0.6, and the second gets 0.6 / 3 more, which makes 0.6, and 1. Without G it would become 0, too.
TEST(two_weights_by_hand) {
    const std::vector<float> weight{0.4f, 0.4f}, scale{1.0f};
    const std::vector<double> gram{2.0, 1.0, 1.0, 2.0};
    const std::vector<std::int32_t> zero_point{0};
    const rounding::Problem problem{weight, gram, scale, zero_point, 1, 2, 1, 1, -8, 7};
    Codes codes(2);
    rounding::gptq(problem, {0.0, false}, codes, 1);
    CHECK(codes == Codes{0, 1});
}

TEST(a_diagonal_gram_wants_the_nearest_codes) {
    const OwnedProblem p(4, 9, 20, 0.0f);
    for (const bool ordered : {false, true}) {
        Codes codes(p.weight.size());
        rounding::gptq(p.problem(), {0.01, ordered}, codes, 1);
        CHECK(codes == p.nearest() && codes == p.best());
    }
}

// More features than are handled at once, and more rows than a task has.
TEST(every_code_is_the_books) {
    for (const std::int64_t features : {1, 2, 17, 130})
        for (const bool ordered : {false, true})
            for (const double damping : {0.01, 0.3}) {
                const OwnedProblem p(features == 17 ? 35 : 2, features, static_cast<unsigned>(features), 1.0f);
                Codes codes(p.weight.size());
                rounding::gptq(p.problem(), {damping, ordered}, codes, 2);
                CHECK(codes == plain_gptq(p, damping, ordered));
            }
}
