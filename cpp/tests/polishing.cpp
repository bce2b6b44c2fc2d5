#include "leadline/polishing.hpp"

#include <bit>
#include <cmath>
#include <limits>

#include "testing.hpp"

using namespace leadline;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

std::vector<float> bends(std::int64_t channels) {
    std::vector<float> omega(static_cast<std::size_t>(channels));
    for (std::size_t c = 0; c < omega.size(); ++c) omega[c] = c % 3 == 1 ? infinity : std::ldexp(1.0f, int(c % 9) - 4);
    return omega;
}

}  // namespace

TEST(passes_in_every_layout) {
    for (const Layout& layout : layouts) {
        const auto size = static_cast<std::size_t>(layout.size());
        const auto x = normal(size);
        const auto omega = bends(layout.channels);
        const std::vector<float> scale(omega.size(), 0.25f);
        const std::vector<std::int32_t> zero(omega.size(), 7);
        const affine::Scheme scheme{0, 15, 8, false, affine::Fit::absmax};
        std::vector<float> y(size), back(size), fused(size), place = x;
        CHECK(polishing::polish(x, layout, omega, y, 1) && polishing::unpolish(y, layout, omega, back, 2));
        for (std::size_t i = 0; i < size; ++i) CHECK(std::fabs(back[i] - x[i]) <= 1e-5f * std::fabs(x[i]));
        CHECK(polishing::polish(place, layout, omega, place, 3) && place == y);
        affine::fake_quantize(y, layout, scale, zero, scheme, y, 1);
        polishing::unpolish(y, layout, omega, back, 1);
        CHECK(polishing::fake_quantize(x, layout, omega, scale, zero, scheme, fused, 2) && fused == back);
        if (size == 0) continue;
        place = x, place[size - 1] = infinity;
        CHECK(!polishing::polish(place, layout, omega, fused, 1) && !polishing::unpolish(place, layout, omega, fused, 2));
        CHECK(!polishing::fake_quantize(place, layout, omega, scale, zero, scheme, place, 1));
        const std::span<float> few(fused.data(), size - 1);
        CHECK(refused([&] { polishing::polish(x, layout, omega, few, 1); }, "size of x"));
        CHECK(refused([&] { polishing::polish(few, layout, omega, few, 1); }, "cover the array"));
        const std::span<const float> less(scale.data(), scale.size() - 1);
        CHECK(refused([&] { polishing::fake_quantize(x, layout, omega, less, zero, scheme, fused, 1); }, "one size"));
    }
}

// Values of every magnitude, and channels with nothing in them.
TEST(choices_on_every_float) {
    observers::Histogram histogram(4);
    std::vector<float> x;
    for (std::uint32_t bits = 0; bits < 0x7f800000u; bits += 0x1fff7u)
        for (const float v : {std::bit_cast<float>(bits), -std::bit_cast<float>(bits)})
            x.insert(x.end(), {v, std::fabs(v), 0.0f, std::sin(v)});
    const std::vector<polishing::Bend> tried = {{95.0, 1.0}, {100.0, 1.0}, {50.0, 0.05}, {50.0, 2.0}, {1e-9, 1e-30}};
    for (int filled = 0; filled < 2; ++filled) {
        for (const std::int64_t levels : {3, 15, 255, 65535})
            for (const auto& channel : histogram.channels)
                for (const bool affine : {false, true}) {
                    const affine::Scheme scheme{0, levels, (levels + 1) / 2, affine, affine::Fit::absmax};
                    const auto choice = polishing::choose(channel, scheme, tried, affine);
                    CHECK(choice.omega > 0.0f && choice.error >= 0.0 && choice.lo <= choice.hi);
                    const auto grid = affine::choose(double(choice.lo), double(choice.hi), scheme);
                    const double again = polishing::error(channel, choice.omega, grid, scheme);
                    CHECK(again == choice.error);
                }
        const Layout layout{static_cast<std::int64_t>(x.size() / 4), 4, 1};
        CHECK(histogram.update(x, layout, 2));
    }
}
