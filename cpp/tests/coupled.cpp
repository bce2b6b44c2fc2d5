#include <vector>

#include "leadline/rounding.hpp"
#include "reference.hpp"
#include "testing.hpp"

using namespace leadline;

namespace {

using Codes = std::vector<std::int32_t>;

// tr(F D G D^T).
double error(const OwnedProblem& p, const std::vector<double>& fisher, const Codes& codes) {
    double total = 0.0;
    for (std::int64_t r = 0; r < p.rows; ++r)
        for (std::int64_t s = 0; s < p.rows; ++s)
            for (std::int64_t i = 0; i < p.features; ++i)
                for (std::int64_t j = 0; j < p.features; ++j)
                    total += fisher[r * p.rows + s] * p.off(r, i, codes[r * p.features + i]) *
                             p.gram[i * p.features + j] * p.off(s, j, codes[s * p.features + j]);
    return total;
}

}  // namespace

TEST(no_single_code_gains) {
    for (unsigned seed = 0; seed < 5; ++seed) {
        const OwnedProblem p(3, 4, 50 * seed, 1.0f);
        const std::vector<double> fisher{1.0, 0.6, -0.3, 0.6, 2.0, 0.4, -0.3, 0.4, 0.7};
        Codes codes = p.nearest();
        const double before = error(p, fisher, codes);
        rounding::descend_coupled(p.problem(), {}, fisher, codes);
        const double after = error(p, fisher, codes);
        CHECK(after <= before + 1e-9);
        for (std::size_t i = 0; i < codes.size(); ++i)
            for (auto code = static_cast<std::int32_t>(p.qmin); code <= p.qmax; ++code) {
                Codes other = codes;
                other[i] = code;
                CHECK(error(p, fisher, other) >= after - 1e-5);
            }
    }
}

TEST(outputs_apart_are_plain_descent) {
    const OwnedProblem p(3, 9, 7, 1.0f);
    const std::vector<double> fisher{0.5, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 1.0};
    Codes codes = p.nearest(), plain = codes;
    rounding::descend_coupled(p.problem(), {}, fisher, codes);
    rounding::descend(p.problem(), {}, plain, 1);
    CHECK(codes == plain);
}
