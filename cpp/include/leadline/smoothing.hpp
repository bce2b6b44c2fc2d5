#pragma once
#include <cstdint>
#include <span>

#include "leadline/affine.hpp"

// What rounding to nearest would cost a layer whose weight has taken over scales s of its input's channels: the error
//     tr(D G D^T),   D = (round(W diag s) - W diag s) diag(1 / s),
// of the layer's output, from the second moments G = E[x x^T] of the inputs x before scaling.
namespace leadline::smoothing {

struct Layer {
    std::span<const float> weight;  // rows x (channels x taps)
    std::span<const double> gram;   // features x features, symmetric; features = channels x taps
    std::int64_t rows, channels, taps;

    std::int64_t features() const { return channels * taps; }
};

// For each of the candidates, rows of `scales` (candidates x channels), the error in `out`. A grid covers `block`
// neighbouring features of a row (all of them: one grid for each row); block 0 is one grid for the whole weight.
void weight_errors(const Layer& layer, std::span<const double> scales, const affine::Scheme& scheme, std::int64_t block,
                   std::span<double> out, int threads);

}  // namespace leadline::smoothing
