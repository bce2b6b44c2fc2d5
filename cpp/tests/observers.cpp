#include "leadline/observers.hpp"

#include <limits>
#include <vector>

#include "testing.hpp"

using namespace leadline;

TEST(histogram_counts_and_merges) {
    for (const Layout& layout : layouts) {
        const auto x = normal(static_cast<std::size_t>(layout.size()), 3);
        observers::Histogram one(layout.channels), three(layout.channels), halves(layout.channels);
        CHECK(one.update(x, layout, 1) && three.update(x, layout, 3));
        if (layout.outer % 2 == 0) {
            const Layout half{layout.outer / 2, layout.channels, layout.inner};
            const std::span<const float> all(x);
            observers::Histogram second(layout.channels);
            CHECK(halves.update(all.subspan(all.size() / 2), half, 2));
            CHECK(second.update(all.first(all.size() / 2), half, 1));
            halves.merge(second);
        } else {
            halves.merge(one);
        }
        for (std::size_t c = 0; c < one.channels.size(); ++c)
            for (const observers::Histogram* other : {&three, &halves}) {
                const auto &a = one.channels[c], &b = other->channels[c];
                CHECK(a.count == b.count && a.zeros == b.zeros && a.lo == b.lo && a.hi == b.hi);
                CHECK(a.sum() == b.sum() && a.sum_sq() == b.sum_sq());
            }
    }
    observers::Histogram h(1);
    std::vector<float> x = normal(300'000);
    x[200'000] = std::numeric_limits<float>::quiet_NaN();
    CHECK(!h.update(x, {1, 1, 300'000}, 2) && h.channels[0].count == 0);
    x[200'000] = 0.0f;
    CHECK(h.update(x, {1, 1, 300'000}, 2) && h.channels[0].count == 300'000 && h.channels[0].zeros == 1);
    CHECK(refused([&] { h.merge(observers::Histogram(2)); }, "same number of channels"));
}
