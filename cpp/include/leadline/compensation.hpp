#pragma once
#include <cstdint>
#include <span>

// Weights that make up for errors of their inputs: with x what a layer read in float, y what it reads once everything
// upstream is quantised, C = E[x y^T] and G = E[y y^T], the ridge regression
//     min_V  E |W x - V y|^2 + lambda |V - W|^2   gives   V = W + W (C - G) (G + lambda I)^-1,
// shrunk toward W, never toward zero.
namespace leadline::compensation {

struct Solution {
    double damping;     // lambda over the mean diagonal of G that made the system positive definite
    std::int64_t rank;  // of G: the pivots of its factorisation above 1e-10 of the largest
};

// weight: rows x features; cross and gram: groups x features x features, of `groups` runs of rows. `out` gets V.
// `damping` is taken as it is, or times ten until the factorisation succeeds.
Solution compensate(std::span<const float> weight, std::span<const double> cross, std::span<const double> gram,
                    std::int64_t rows, std::int64_t features, std::int64_t groups, double damping, std::span<float> out,
                    int threads);

}  // namespace leadline::compensation
