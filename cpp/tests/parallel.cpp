#include "parallel.hpp"

#include <stdexcept>
#include <vector>

#include "testing.hpp"

using namespace leadline;

TEST(parallel_rethrows_the_first_exception) {
    for (int threads : {1, 2, 3}) {
        bool caught = false;
        try {
            parallel_for(100, threads, [](std::int64_t task, int) {
                if (task % 7 == 3) throw std::invalid_argument("injected");
            });
        } catch (const std::invalid_argument&) {
            caught = true;
        }
        CHECK(caught);
    }
    std::vector<int> seen(1000);
    parallel_for(1000, 3, [&](std::int64_t task, int worker) {
        seen[static_cast<std::size_t>(task)] = 1 + worker;
    });
    for (int worker : seen) CHECK(worker >= 1 && worker <= 3);
    parallel_for(0, 4, [](std::int64_t, int) { CHECK(false); });
}
