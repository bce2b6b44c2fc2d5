#include "leadline/interrupt.hpp"

#include <chrono>
#include <vector>

#include "leadline/gram.hpp"
#include "leadline/rounding.hpp"
#include "parallel.hpp"
#include "reference.hpp"
#include "testing.hpp"

using namespace leadline;

namespace {

// Whether the call throws Interrupted when its hook gives it up at the given question, the first of which is 0.
template <class Call>
bool given_up(int question, Call&& call) {
    const InterruptHook hook([&] { return question-- <= 0; }, std::chrono::milliseconds(0));
    try {
        call();
    } catch (const Interrupted&) {
        return true;
    }
    return false;
}

}  // namespace

TEST(hooks_are_of_a_thread_and_nest) {
    CHECK(!InterruptHook::current());
    {
        const InterruptHook outer([] { return false; });
        {
            const InterruptHook inner([] { return true; });
            CHECK(InterruptHook::current() == &inner);
        }
        CHECK(InterruptHook::current() == &outer);
        parallel_for(8, 2, [](std::int64_t, int worker) { CHECK(worker == 0 || !InterruptHook::current()); });
    }
    CHECK(!InterruptHook::current());
}

// Tasks that end only when somebody stops them: on the calling thread, and elsewhere when that has none left.
TEST(every_task_is_stopped) {
    for (const int threads : {1, 2, 3}) CHECK(given_up(9, [&] {
        Watch watch;
        const auto endless = [&](std::int64_t, int) {
            for (;;) watch.look();
        };
        parallel_for(3, threads, endless, &watch);
    }));
    CHECK(given_up(9, [] {
        Watch watch;
        const auto endless_elsewhere = [&](std::int64_t, int worker) {
            while (worker != 0) watch.look();
        };
        parallel_for(2, 2, endless_elsewhere, &watch);
        for (;;) watch.look();  // both tasks fell to the calling thread
    }));
}

TEST(codes_are_as_they_were) {
    const OwnedProblem p(40, 160, 3, 1.0f);
    const std::vector<std::int32_t> start = p.nearest();
    std::vector<double> fisher(1600);
    for (std::size_t r = 0; r < 40; ++r) fisher[r * 41] = 1.0;
    for (int solver = 0; solver < 4; ++solver) {
        int interrupted = 0;
        std::vector<std::int32_t> wanted = start;
        const auto solve = [&](std::vector<std::int32_t>& codes, int threads) {
            if (solver == 0) rounding::descend(p.problem(), {}, codes, threads);
            if (solver == 1) rounding::adaround(p.problem(), {30}, codes, threads);
            if (solver == 2) rounding::descend_coupled(p.problem(), {}, fisher, codes);
            if (solver == 3) rounding::gptq(p.problem(), {}, codes, threads);
        };
        solve(wanted, 1);
        for (const int threads : {1, 2})
            for (int question = 0; question < 20; ++question) {
                std::vector<std::int32_t> codes = start;
                const bool stopped = given_up(question, [&] { solve(codes, threads); });
                interrupted += stopped;
                CHECK(codes == (stopped ? start : wanted));
            }
        CHECK(interrupted > 3);
    }
}

TEST(moments_are_as_they_were) {
    const auto x = uniform(3'300'000, 1, -1.0f, 1.0f);
    const std::span<const float> all(x);
    for (const int threads : {1, 2})
        for (const int question : {0, 1, 7}) {
            constexpr std::int64_t features = 400, rows = 8000;
            std::vector<double> sum(features, 3.0), second(features * features, 2.0), sum_before = sum, before = second;
            const auto update = [&] { gram::update(all.first(rows * features), rows, features, sum, second, threads); };
            CHECK(given_up(question, update) && sum == sum_before && second == before);
            for (const std::int64_t groups : {1, 2}) {
                const gram::Conv conv{2, 32 / groups, 160, 160, groups, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1};
                const auto n = static_cast<std::size_t>(conv.features());
                std::vector<double> sums(groups * n, 3.0), sums_before = sums;
                std::vector<double> matrices(groups * n * n, 2.0), matrices_before = matrices;
                const auto update_conv = [&] {
                    gram::update_conv(all.first(2 * 32 * 160 * 160), conv, sums, matrices, threads);
                };
                CHECK(given_up(question, update_conv) && sums == sums_before && matrices == matrices_before);
            }
        }
}
