// A linear layer in four bits: a grid for each output, second moments of its inputs, and codes by five methods, with
// the error of the layer's output that each leaves, on the inputs that were seen and on as many others.
//
//     cmake -S examples/cpp -B build/example -DCMAKE_PREFIX_PATH=PREFIX   # PREFIX: where leadline is installed
//     cmake --build build/example && build/example/round_layer
#include <leadline/affine.hpp>
#include <leadline/gram.hpp>
#include <leadline/rounding.hpp>
#include <leadline/version.hpp>

#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

namespace {

using Codes = std::vector<std::int32_t>;

constexpr std::int64_t outputs = 64, features = 96, samples = 512;
constexpr int threads = 2;

// Inputs as layers see them: a few sources, mixed, so that features go together.
std::vector<float> inputs(unsigned seed) {
    std::mt19937 generator(seed), mixing(1);
    std::normal_distribution<float> normal;
    constexpr std::int64_t sources = 24;
    std::vector<float> mix(sources * features);
    for (float& weight : mix) weight = normal(mixing);
    std::vector<float> x(samples * features);
    for (std::int64_t s = 0; s < samples; ++s)
        for (std::int64_t k = 0; k < sources; ++k) {
            const float source = normal(generator);
            for (std::int64_t f = 0; f < features; ++f) x[s * features + f] += source * mix[k * features + f];
        }
    for (float& value : x) value += 0.3f * normal(generator);
    return x;
}

// E[x x^T].
std::vector<double> moments(const std::vector<float>& x) {
    std::vector<double> sum(features), gram(features * features);
    if (!leadline::gram::update(x, samples, features, sum, gram, threads)) throw std::invalid_argument("NaN in the inputs");
    leadline::gram::mirror(gram, 1, features, threads);
    for (double& entry : gram) entry /= samples;
    return gram;
}

}  // namespace

int main() {
    using namespace leadline;

    std::mt19937 generator(2);
    std::normal_distribution<float> normal(0.0f, 0.1f);
    std::vector<float> weight(outputs * features);
    for (float& w : weight) w = normal(generator);

    // One symmetric grid for each output: codes -8 to 7.
    const Layout rows{1, outputs, features};
    const affine::Scheme scheme{-8, 7, 0, true};
    std::vector<float> lo(outputs), hi(outputs), scale(outputs);
    std::vector<std::int32_t> zero_point(outputs);
    affine::range(weight, rows, lo, hi, threads);
    affine::choose(std::vector<double>(lo.begin(), lo.end()), std::vector<double>(hi.begin(), hi.end()), scheme, scale,
                   zero_point);

    const std::vector<double> seen = moments(inputs(3)), others = moments(inputs(4));
    const rounding::Problem problem{weight, seen, scale, zero_point, outputs, features, 1, 1, scheme.qmin, scheme.qmax};
    rounding::Problem judge = problem;
    judge.gram = others;
    const auto total = [](const rounding::Problem& on, const Codes& codes) {
        std::vector<double> errors(outputs);
        rounding::error(on, codes, errors, threads);
        return std::accumulate(errors.begin(), errors.end(), 0.0);
    };

    Codes nearest(weight.size());
    affine::quantize<std::int32_t>(weight, rows, scale, zero_point, scheme, nearest, threads);
    Codes descent = nearest, gptq = nearest, both, adaround = nearest;
    rounding::descend(problem, {}, descent, threads);
    rounding::gptq(problem, {}, gptq, threads);
    rounding::descend(problem, {}, both = gptq, threads);
    rounding::adaround(problem, {}, adaround, threads);

    std::printf("leadline %s: %d x %d weights in 4 bits\n\n", version, int(outputs), int(features));
    std::printf("%-18s %12s %12s\n", "error of outputs", "seen inputs", "others");
    const auto row = [&](const char* name, const Codes& codes) {
        std::printf("%-18s %12.5f %12.5f\n", name, total(problem, codes), total(judge, codes));
    };
    row("nearest", nearest), row("descent", descent), row("GPTQ", gptq), row("GPTQ and descent", both);
    row("AdaRound", adaround);
    for (const Codes& codes : {descent, gptq, both, adaround})
        if (!(total(judge, codes) < total(judge, nearest))) return 1;
}
