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

// Cyclic coordinate descent as a book has it: every code of the grid is tried with all others fixed. What gains less
// than 0.002 of the error of a whole step is no move.
void plain_descent(const OwnedProblem& p, std::int64_t row, Codes& codes) {
    const std::int64_t n = p.features;
    std::vector<std::int64_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return p.gram[a * n + a] > p.gram[b * n + b]; });
    for (bool changed = true; changed;) {
        changed = false;
        for (const std::int64_t i : order) {
            double slope = 0.0;
            for (std::int64_t j = 0; j < n; ++j) slope += p.gram[i * n + j] * p.off(row, j, codes[row * n + j]);
            const std::int32_t before = codes[row * n + i];
            std::int32_t best = before;
            double least = -0.002 * p.gram[i * n + i] * p.scale[row] * p.scale[row];
            for (auto code = static_cast<std::int32_t>(p.qmin); code <= p.qmax; ++code) {
                const double move = p.scale[row] * static_cast<double>(code - before);
                const double change = 2.0 * slope * move + p.gram[i * n + i] * move * move;
                if (change < least) least = change, best = code;
            }
            if (best != before) codes[row * n + i] = best, changed = true;
        }
    }
}

}  // namespace

// Inputs that all but agree: both weights rounded down miss 0.8 of them, one of them rounded up 0.2. By hand:
// 0.16 (1 + 1 + 2 x 0.9) = 0.608 for (0, 0), and 0.36 + 0.16 - 2 x 0.9 x 0.24 = 0.088 for (1, 0).
TEST(two_weights_by_hand) {
    const std::vector<float> weight{0.4f, 0.4f}, scale{1.0f};
    const std::vector<double> gram{1.0, 0.9, 0.9, 1.0};
    const std::vector<std::int32_t> zero_point{0};
    const rounding::Problem problem{weight, gram, scale, zero_point, 1, 2, 1, 1, -8, 7};
    Codes codes{0, 0};
    std::vector<double> error(1);
    rounding::error(problem, codes, error, 1);
    CHECK(std::fabs(error[0] - 0.608) < 1e-6);
    rounding::descend(problem, {}, codes, 1);
    rounding::error(problem, codes, error, 1);
    CHECK(codes == Codes{1, 0} && std::fabs(error[0] - 0.088) < 1e-6);
}

TEST(a_diagonal_gram_wants_the_nearest_codes) {
    for (const std::int64_t features : {1, 3, 9}) {
        const OwnedProblem p(5, features, 10, 0.0f);
        Codes codes(p.weight.size(), -8);
        rounding::descend(p.problem(), {}, codes, 2);
        CHECK(codes == p.nearest() && codes == p.best());
    }
}

TEST(the_best_of_all_roundings_stays) {
    for (unsigned seed = 0; seed < 20; ++seed) {
        const OwnedProblem p(4, 8, 100 * seed, 2.0f);
        const Codes best = p.best();
        Codes codes = best, near = p.nearest();
        rounding::descend(p.problem(), {50, true}, codes, 1);
        CHECK(codes == best);
        rounding::descend(p.problem(), {50, true}, near, 1);
        const Codes start = p.nearest();
        for (std::int64_t row = 0; row < p.rows; ++row) {
            CHECK(p.error(row, best) <= p.error(row, near) + 1e-9 && p.error(row, near) <= p.error(row, start) + 1e-9);
            for (std::int64_t i = 0; i < p.features; ++i) {  // no single flip gains
                Codes flipped = near;
                std::int32_t& code = flipped[row * p.features + i];
                code = 2 * p.below(row, i) + 1 - code;
                CHECK(p.error(row, flipped) >= p.error(row, near) - 1e-5);
            }
        }
    }
}

// More features than are handled at once.
TEST(every_move_is_the_books) {
    for (const std::int64_t features : {2, 7, 63, 64, 65, 130})
        for (const float mixing : {0.3f, 2.0f}) {
            const OwnedProblem p(3, features, static_cast<unsigned>(features), mixing);
            Codes codes = p.nearest(), wanted = codes;
            for (std::int64_t row = 0; row < p.rows; ++row) plain_descent(p, row, wanted);
            rounding::descend(p.problem(), {200, false}, codes, 2);
            CHECK(codes == wanted);
        }
}

// From afar, where most codes move at first: the book finds nothing left to do.
TEST(many_moves_end_where_few_do) {
    for (const std::int64_t features : {7, 64, 130}) {
        const OwnedProblem p(70, features, static_cast<unsigned>(features), 0.3f);
        Codes codes(p.weight.size(), -8);
        rounding::descend(p.problem(), {200, false}, codes, 2);
        Codes further = codes;
        for (std::int64_t row = 0; row < p.rows; ++row) plain_descent(p, row, further);
        CHECK(further == codes);
    }
}

TEST(damping_is_added_to_the_gram) {
    OwnedProblem p(5, 70, 4, 2.0f);
    Codes codes = p.nearest(), wanted = codes;
    rounding::descend(p.problem(), {200, false, 0.3}, codes, 1);
    double mean = 0.0;
    for (std::int64_t i = 0; i < 70; ++i) mean += p.gram[i * 71] / 70.0;
    for (std::int64_t i = 0; i < 70; ++i) p.gram[i * 71] += 0.3 * mean;
    rounding::descend(p.problem(), {200, false}, wanted, 1);
    CHECK(codes == wanted);
}
