#include "leadline/search.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "parallel.hpp"

namespace leadline::observers {

Segments::Segments(const Channel& channel, double p) : mass{0.0}, power{0.0}, p(p) {
    const auto add = [&](int sign, std::int32_t key) {
        const Bucket& bucket = channel.sides[sign].buckets[static_cast<std::size_t>(key - channel.sides[sign].begin)];
        if (bucket.count == 0) return;
        const double n = static_cast<double>(bucket.count), edge = lower_edge(key), step = unit(key);
        const double m = static_cast<double>(bucket.first) / n;
        const double variance = std::fmax(0.0, 1024.0 * static_cast<double>(bucket.second) / n - m * m);
        const double steps = static_cast<double>(1 << low_bits);  // in a bucket
        // At least a millionth of the bucket wide, so that no formula divides by zero; never outside the bucket.
        const double half = std::fmax(std::fmin(std::sqrt(3.0 * variance), std::fmin(m, steps - m)), 1e-6 * steps);
        const double middle = edge + step * m, low = middle - step * half, high = middle + step * half;
        count.push_back(n);
        mean.push_back(sign ? -middle : middle);
        lower.push_back(sign ? -high : low);
        upper.push_back(sign ? -low : high);
        density.push_back(n / (high - low));
        mass.push_back(mass.back() + n);
        const double inner = p == 2.0 ? low * low * low : std::pow(low, p + 1.0);
        const double outer = p == 2.0 ? high * high * high : std::pow(high, p + 1.0);
        power.push_back(power.back() + density.back() * (outer - inner) / (p + 1.0));
    };
    for (std::int32_t key = channel.sides[1].end() - 1; key >= channel.sides[1].begin; --key) add(1, key);
    for (std::int32_t key = channel.sides[0].begin; key < channel.sides[0].end(); ++key) add(0, key);
}

std::pair<std::size_t, std::size_t> Segments::central(double reach) const {
    const auto first = std::lower_bound(lower.begin(), lower.end(), -reach) - lower.begin();
    const auto last = std::upper_bound(upper.begin(), upper.end(), reach) - upper.begin();
    return {first, std::max(first, last)};
}

namespace {

// Integral of |error|^p from zero to t, in steps of the grid, as a function of t / scale: the error is a sawtooth inside
// the grid and grows from its last value beyond. One formula covers rounding, clipping and any number of cells.
template <bool squared>
double integral(double t, double lowest, double highest, double p, double gamma) {
    double k = affine::round_even(t);
    k = k > lowest ? k : lowest;
    k = k < highest ? k : highest;
    const double rest = t - k;
    if constexpr (squared) {
        const double beyond = std::fmax(std::fabs(rest), 0.5);
        const double cube = rest * rest * rest;
        return k / 12.0 + (cube + (gamma - 1.0) * std::copysign(beyond * beyond * beyond - 0.125, rest)) / 3.0;
    } else {
        const double half = 2.0 * std::pow(0.5, p + 1.0), inside = std::pow(std::fabs(rest), p + 1.0);
        const double beyond = std::fabs(rest) > 0.5 ? (gamma - 1.0) * (inside - 0.5 * half) : 0.0;
        return (k * half + std::copysign(inside + beyond, rest)) / (p + 1.0);
    }
}

template <bool squared>
double lp_sum(const Segments& s, std::size_t begin, std::size_t end, double scale, double lowest, double highest,
              double gamma) {
    constexpr std::size_t batch = 256;
    std::array<double, batch> part;
    std::array<double, 4> total{};
    const double inverse = 1.0 / scale;
    for (std::size_t from = begin; from < end; from += batch) {
        const std::size_t n = std::min(batch, end - from);
        const double *lower = &s.lower[from], *upper = &s.upper[from], *density = &s.density[from];
        for (std::size_t i = 0; i < n; ++i) {
            const double a = lower[i] * inverse, b = upper[i] * inverse;
            part[i] = density[i] * scale * (integral<squared>(b, lowest, highest, s.p, gamma) -
                                           integral<squared>(a, lowest, highest, s.p, gamma));
        }
        for (std::size_t i = n; i % 4; ++i) part[i] = 0.0;
        for (std::size_t i = 0; i < n; i += 4)
            for (std::size_t k = 0; k < 4; ++k) total[k] += part[i + k];
    }
    return ((total[0] + total[1]) + (total[2] + total[3])) * std::pow(scale, s.p);
}

}  // namespace

double lp_cost(const Segments& segments, const affine::Grid& grid, const affine::Scheme& scheme, double gamma) {
    const double scale = static_cast<double>(grid.scale);
    const auto lowest = static_cast<double>(scheme.qmin - grid.zero_point);
    const auto highest = static_cast<double>(scheme.qmax - grid.zero_point);
    const auto [begin, end] = segments.central(0.5 * scale);
    const auto sum = segments.p == 2.0 ? lp_sum<true> : lp_sum<false>;
    return sum(segments, 0, begin, scale, lowest, highest, gamma) + (segments.power[end] - segments.power[begin]) +
           sum(segments, end, segments.size(), scale, lowest, highest, gamma);
}

Density::Density(const Channel& channel, const Segments& segments)
    : bin_size(std::fmax(-static_cast<double>(channel.lo), static_cast<double>(channel.hi)) / bins_a_side),
      mass(2 * bins_a_side + 1), support(2 * bins_a_side + 1), entropy(2 * bins_a_side + 1) {
    std::vector<double> bins(2 * bins_a_side);
    const double limit = bins_a_side;
    for (std::size_t i = 0; i < segments.size(); ++i) {
        const double from = std::fmax(segments.lower[i] / bin_size, -limit);
        const double until = std::fmin(segments.upper[i] / bin_size, limit);
        const double share = segments.count[i] / (until - from);
        const double last = std::fmin(std::floor(until), limit - 1.0);
        for (double bin = std::floor(from); bin <= last; ++bin)
            bins[static_cast<std::size_t>(bin + limit)] +=
                share * std::fmax(0.0, std::fmin(until, bin + 1.0) - std::fmax(from, bin));
    }
    for (std::size_t i = 0; i < bins.size(); ++i) {
        const double n = bins[i];
        mass[i + 1] = mass[i] + n;
        support[i + 1] = support[i] + (n > 0.0 ? bin_size : 0.0);
        entropy[i + 1] = entropy[i] + (n > 0.0 ? n * std::log(n / bin_size) : 0.0);
    }
}

Density::Below Density::below(double x) const {
    const double limit = bins_a_side, at = std::fmin(std::fmax(x / bin_size + limit, 0.0), 2.0 * limit);
    const double bin = std::fmin(std::floor(at), 2.0 * limit - 1.0), part = at - bin;
    const auto i = static_cast<std::size_t>(bin);
    const auto mix = [&](const std::vector<double>& sums) { return sums[i] + part * (sums[i + 1] - sums[i]); };
    return {mix(mass), mix(support), mix(entropy)};
}

// The divergence of TensorRT's calibration. P: the observed density, with the mass beyond the grid put on an edge strip
// (1/16 of the outermost cell). Q: the density after quantisation, the mass of each cell spread evenly over the part of
// the cell where P is not empty, without the mass beyond the grid, normalised.
double entropy_cost(const Density& p, const affine::Grid& grid, const affine::Scheme& scheme) {
    const double step = static_cast<double>(grid.scale), strip = step / 16.0;
    const auto lowest = static_cast<double>(scheme.qmin - grid.zero_point);
    const auto highest = static_cast<double>(scheme.qmax - grid.zero_point);
    const Density::Below left = p.below((lowest - 0.5) * step);
    double divergence = 0.0, edge_density[2] = {0.0, 0.0};
    Density::Below from = left;
    for (double cell = lowest; cell <= highest; ++cell) {
        const Density::Below until = p.below((cell + 0.5) * step);
        const double mass = until.mass - from.mass;
        if (mass > 0.0) {
            const double density = mass / (until.support - from.support);
            divergence -= mass * std::log(density);
            if (cell == lowest) edge_density[0] = density;
            if (cell == highest) edge_density[1] = density;
        }
        from = until;
    }
    const Density::Below right = from;
    const double inside = right.mass - left.mass, total = p.mass.back();
    if (!(inside > 0.0)) return HUGE_VAL;
    divergence += right.entropy - left.entropy;

    const Density::Below low = p.below((lowest - 0.5) * step + strip), high = p.below((highest + 0.5) * step - strip);
    const auto clip = [&](double outer, double strip_mass, double strip_entropy, double density) {
        if (!(outer > 0.0)) return 0.0;
        if (!(density > 0.0)) return HUGE_VAL;  // mass was clipped to where Q has none
        const double with = strip_mass + outer;
        return with * std::log(with / strip) - strip_entropy - outer * std::log(density);
    };
    divergence += clip(left.mass, low.mass - left.mass, low.entropy - left.entropy, edge_density[0]);
    divergence += clip(total - right.mass, right.mass - high.mass, right.entropy - high.entropy, edge_density[1]);
    return divergence / total + std::log(inside / total);
}

namespace {

affine::Grid grid_of(Range range, const affine::Scheme& scheme) {
    return affine::choose(static_cast<double>(range.lo), static_cast<double>(range.hi), scheme);
}

// Elements and their sum beyond a threshold, from the outside in.
struct Tail {
    double count = 0.0, sum = 0.0;
};
Tail above(const Segments& s, double t) {
    Tail tail;
    for (std::size_t i = s.size(); i-- > 0 && s.upper[i] > t;) {
        const double part = s.lower[i] >= t ? 1.0 : (s.upper[i] - t) / (s.upper[i] - s.lower[i]);
        tail.count += part * s.count[i];
        tail.sum += part * s.count[i] * (part < 1.0 ? 0.5 * (t + s.upper[i]) : s.mean[i]);
    }
    return tail;
}

Segments mirrored(const Segments& s) {
    Segments out = s;
    const std::size_t n = s.size();
    for (std::size_t i = 0; i < n; ++i) {
        out.lower[i] = -s.upper[n - 1 - i], out.upper[i] = -s.lower[n - 1 - i];
        out.count[i] = s.count[n - 1 - i], out.mean[i] = -s.mean[n - 1 - i];
    }
    return out;
}

// The magnitude above which `allowed` elements lie, where segments of `one` and `other` both count by magnitude.
double outermost(const Segments& one, const Segments* other, double allowed, double limit) {
    const auto beyond = [&](double t) { return above(one, t).count + (other ? above(*other, t).count : 0.0); };
    if (allowed <= 0.0) return limit;
    if (beyond(0.0) <= allowed) return 0.0;
    double low = 0.0, high = limit;
    for (int i = 0; i < 60 && high - low > 1e-9 * high; ++i) {
        const double t = 0.5 * (low + high);
        (beyond(t) > allowed ? low : high) = t;
    }
    return high;
}

// OCTAV's Newton step on each end: the derivative of N_in step^2 / 12 + sum of squared excess, set to zero.
// `ratio` is step / range, so that for a symmetric b-bit grid N_in ratio^2 / 12 is OCTAV's 4^-b / 3 N_in.
Range octav(const Segments& s, const Segments& mirror, float observed_lo, float observed_hi,
            const affine::Scheme& scheme) {
    const double lo_limit = -std::fmin(static_cast<double>(observed_lo), 0.0);
    const double hi_limit = std::fmax(static_cast<double>(observed_hi), 0.0);
    const double levels = static_cast<double>(scheme.qmax - scheme.qmin + 1);
    Tail positive = above(s, 0.0), negative = above(mirror, 0.0);
    const double total = positive.count + negative.count;
    double hi = positive.count > 0.0 ? positive.sum / positive.count : 0.0;
    double lo = negative.count > 0.0 ? negative.sum / negative.count : 0.0;
    if (scheme.symmetric) hi = lo = (positive.sum + negative.sum) / total;
    for (int i = 0; i < 100; ++i) {
        const Tail up = above(s, hi), down = above(mirror, lo);
        const double inside = total - up.count - down.count;
        double next_hi, next_lo;
        if (scheme.symmetric) {
            const double ratio = 2.0 / levels;
            next_hi = (up.sum + down.sum) / (ratio * ratio / 12.0 * inside + up.count + down.count);
            next_lo = next_hi = std::fmin(next_hi, std::fmax(lo_limit, hi_limit));
        } else {
            const double weight = inside / (12.0 * levels * levels);
            next_hi = std::clamp((up.sum - weight * lo) / (weight + up.count), 0.0, hi_limit);
            next_lo = std::clamp((down.sum - weight * hi) / (weight + down.count), 0.0, lo_limit);
        }
        const double change = std::fabs(next_hi - hi) + std::fabs(next_lo - lo);
        hi = next_hi, lo = next_lo;
        if (change <= 1e-7 * (hi + lo)) break;
    }
    return {static_cast<float>(-lo), static_cast<float>(hi)};
}

struct Shrink {
    bool free_low, free_high, tied;
    int patience;      // steps in a row at twice the best cost that end a sweep
    double precision;  // the last ratio between neighbours
    std::pair<double, double> seed;  // one more place to begin
};

// Minimises cost(a, b) over the fractions of the observed ends kept, from (1, 1) downwards. `tied`: a and b move together.
template <class Evaluate>
std::pair<double, double> shrink(Evaluate&& evaluate, const Shrink& how) {
    double best = evaluate(1.0, 1.0), low = 1.0, high = 1.0;
    const auto attempt = [&](double a, double b) {
        if (a == low && b == high) return best;
        const double cost = evaluate(a, b);
        if (cost < best) best = cost, low = a, high = b;
        return cost;
    };
    const auto sweep = [&](double ratio, int steps, auto&& point) {
        for (int i = 1, worse = 0; i <= steps && worse < how.patience; ++i)
            worse = point(std::pow(ratio, -i)) > 2.0 * best ? worse + 1 : 0;
    };
    // Coarse: seven octaves, since outliers differ by orders of magnitude.
    sweep(std::exp2(0.25), 28, [&](double r) { return attempt(r, r); });
    const bool both = !how.tied && how.free_low && how.free_high;
    if (both)
        for (int round = 0; round < 2; ++round) {
            const double a = low, b = high;
            attempt(a, 1.0), sweep(std::sqrt(2.0), 14, [&](double r) { return attempt(a, r); });
            const double kept = high;
            attempt(1.0, kept), sweep(std::sqrt(2.0), 14, [&](double r) { return attempt(r, kept); });
            if (a == low && b == high) break;
        }
    attempt(how.seed.first, how.seed.second);
    // Fine: neighbours at ever smaller ratios.
    for (double ratio = std::exp2(0.25); ratio > how.precision; ratio = std::sqrt(ratio)) {
        const double a = low, b = high, a_up = std::fmin(1.0, a * ratio), b_up = std::fmin(1.0, b * ratio);
        if (!both) {
            attempt(a_up, b_up), attempt(a / ratio, b / ratio);
            continue;
        }
        attempt(a_up, b), attempt(a / ratio, b), attempt(a, b_up), attempt(a, b / ratio);
        const double c = low, d = high;  // both at once: integer zero points make the cost rugged
        attempt(std::fmin(1.0, c * ratio), std::fmin(1.0, d * ratio)), attempt(c / ratio, d / ratio);
        attempt(std::fmin(1.0, c * ratio), d / ratio), attempt(c / ratio, std::fmin(1.0, d * ratio));
    }
    return {low, high};
}

}  // namespace

Range search(const Channel& channel, const affine::Scheme& scheme, const Search& options) {
    if (channel.count == 0) return {};
    const float lo = std::fmin(channel.lo, 0.0f), hi = std::fmax(channel.hi, 0.0f);
    const Range observed{lo, hi};
    const Segments segments(channel, options.p);
    // Beyond ten bits a cell is narrower than a bucket: the histogram shows no loss, and entropy keeps the whole range.
    const bool blind = options.method == Method::entropy && scheme.qmax - scheme.qmin >= 1024;
    if (options.method == Method::minmax || segments.size() == 0 || blind) return observed;

    const auto inside = [&](double a, double b) {
        return Range{std::fmax(lo, static_cast<float>(a)) + 0.0f, std::fmin(hi, static_cast<float>(b)) + 0.0f};
    };
    if (options.method == Method::percentile) {
        const Segments mirror = mirrored(segments);
        const double share = 1.0 - options.percentile / 100.0;
        const double allowed = share * static_cast<double>(channel.count) * (scheme.symmetric ? 1.0 : 0.5);
        if (scheme.symmetric) {
            const double limit = std::fmax(-static_cast<double>(lo), static_cast<double>(hi));
            const double t = outermost(segments, &mirror, allowed, limit);
            return inside(-t, t);
        }
        return inside(-outermost(mirror, nullptr, allowed, -static_cast<double>(lo)),
                      outermost(segments, nullptr, allowed, static_cast<double>(hi)));
    }
    if (options.method == Method::octav) {
        const Range optimum = octav(segments, mirrored(segments), lo, hi, scheme);
        return inside(static_cast<double>(optimum.lo), static_cast<double>(optimum.hi));
    }
    const double amax = std::fmax(-static_cast<double>(lo), static_cast<double>(hi));
    const auto at = [&](double a, double b) {
        return scheme.symmetric ? inside(-a * amax, b * amax)
                                : inside(a * static_cast<double>(lo), b * static_cast<double>(hi));
    };
    Shrink how{lo < 0.0f, hi > 0.0f, scheme.symmetric, 64, 1.02, {1.0, 1.0}};
    if (options.method == Method::lp) {  // clipping only grows as the range shrinks, and OCTAV's answer is near the best
        how.patience = 3, how.precision = 1.004;
        const Range guess = octav(segments, mirrored(segments), lo, hi, scheme);
        const auto kept = [](double part, double whole) { return whole != 0.0 ? std::fmin(part / whole, 1.0) : 1.0; };
        if (scheme.symmetric)
            how.seed = {kept(std::fmax(-guess.lo, guess.hi), amax), kept(std::fmax(-guess.lo, guess.hi), amax)};
        else
            how.seed = {kept(guess.lo, lo), kept(guess.hi, hi)};
    }
    const auto best = [&](auto&& cost) {
        const auto [a, b] = shrink([&](double p, double q) { return cost(grid_of(at(p, q), scheme)); }, how);
        return at(a, b);
    };
    if (options.method == Method::lp)
        return best([&](const affine::Grid& grid) { return lp_cost(segments, grid, scheme, options.gamma); });
    const Density density(channel, segments);
    return best([&](const affine::Grid& grid) { return entropy_cost(density, grid, scheme); });
}

void search(const Histogram& histogram, const affine::Scheme& scheme, const Search& options, std::span<float> lo,
            std::span<float> hi, int threads) {
    require(lo.size() == histogram.channels.size() && hi.size() == lo.size(), "search_range",
            "lo and hi must have one entry a channel", std::to_string(lo.size()));
    parallel_for(static_cast<std::int64_t>(lo.size()), threads, [&](std::int64_t c, int) {
        const Range range = search(histogram.channels[static_cast<std::size_t>(c)], scheme, options);
        lo[c] = range.lo, hi[c] = range.hi;
    });
}

}  // namespace leadline::observers
