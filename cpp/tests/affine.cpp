#include "leadline/affine.hpp"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "testing.hpp"

using namespace leadline;

TEST(affine_in_every_layout) {
    for (const Layout& layout : layouts)
        for (int threads : {1, 3}) {
            const auto x = normal(static_cast<std::size_t>(layout.size()));
            const auto channels = static_cast<std::size_t>(layout.channels);
            std::vector<float> lo(channels), hi(channels), scale(channels), out(x.size()), real(x.size());
            std::vector<std::int32_t> zero(channels);
            CHECK(affine::range(x, layout, lo, hi, threads));
            const affine::Scheme scheme{-128, 127, 0, false, affine::Fit::absmax};
            const std::vector<double> low(lo.begin(), lo.end()), high(hi.begin(), hi.end());
            affine::choose(low, high, scheme, scale, zero);
            std::vector<std::int8_t> codes(x.size());
            CHECK(affine::quantize<std::int8_t>(x, layout, scale, zero, scheme, codes, threads));
            affine::dequantize<std::int8_t>(codes, layout, scale, zero, real, threads);
            CHECK(affine::fake_quantize(x, layout, scale, zero, scheme, out, threads));
            CHECK(real == out);
            for (std::size_t i = 0; i < x.size(); ++i) {
                const auto c = i / static_cast<std::size_t>(layout.inner) % channels;
                CHECK(x[i] >= lo[c] && x[i] <= hi[c] && std::fabs(out[i] - x[i]) <= 0.51f * scale[c]);
            }
        }
}

TEST(affine_extremes) {
    const float huge = std::numeric_limits<float>::max(), tiny = std::numeric_limits<float>::denorm_min();
    for (int bits = 2; bits <= 16; ++bits) {
        const affine::Scheme scheme{0, (std::int64_t{1} << bits) - 1, std::int64_t{1} << (bits - 1), false};
        for (auto [lo, hi] : {std::pair{-huge, huge}, {0.0f, tiny}, {-tiny, 0.0f}, {0.0f, 0.0f}, {-1.0f, huge}}) {
            const affine::Grid grid = affine::choose(static_cast<double>(lo), static_cast<double>(hi), scheme);
            CHECK(grid.scale > 0.0f && std::isfinite(grid.scale));
            CHECK(grid.zero_point >= scheme.qmin && grid.zero_point <= scheme.qmax);
        }
    }
    CHECK(affine::round_even(0.5f) == 0.0f && affine::round_even(1.5f) == 2.0f && affine::round_even(-2.5) == -2.0);
    std::vector<float> x{0.0f, std::numeric_limits<float>::quiet_NaN(), 1.0f}, lo(1), hi(1);
    CHECK(!affine::range(x, {1, 1, 3}, lo, hi, 1));
    x.assign(3000, 1.0f), x[2999] = -std::numeric_limits<float>::infinity();
    CHECK(!affine::range(x, {1, 1, 3000}, lo, hi, 2));
    CHECK(refused([&] { affine::range(x, {1, 1, 2999}, lo, hi, 1); }, "[range_of] layout must cover the array"));
    CHECK(refused([&] { affine::range(x, {1, 2, 1500}, lo, hi, 1); }, "layout must match the parameters"));
}

TEST(codes_by_hand) {
    // [-1, 2] in two bits: scale 1, zero point 1. Halves go to the even step, and what lies beyond to the ends.
    const affine::Scheme scheme{0, 3, 2, false};
    const affine::Grid grid = affine::choose(-1.0, 2.0, scheme);
    CHECK(grid.scale == 1.0f && grid.zero_point == 1);
    const std::vector<float> x{-9.0f, -1.0f, -0.5f, 0.5f, 1.5f, 0.49f, 2.0f, 9.0f}, scale{1.0f};
    const std::vector<std::int32_t> zero_point{1};
    std::vector<std::uint8_t> codes(x.size());
    CHECK(affine::quantize<std::uint8_t>(x, {1, 1, 8}, scale, zero_point, scheme, codes, 1));
    CHECK(codes == std::vector<std::uint8_t>{0, 0, 1, 1, 3, 1, 3, 3});
    std::vector<float> back(x.size());
    affine::dequantize<std::uint8_t>(codes, {1, 1, 8}, scale, zero_point, back, 1);
    CHECK(back == std::vector<float>{-1.0f, -1.0f, 0.0f, 0.0f, 2.0f, 0.0f, 2.0f, 2.0f});
}
