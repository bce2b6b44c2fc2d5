#pragma once
#include <cstdint>
#include <span>

// Weights that make up for errors of their inputs: with x what a layer read in float, y what it reads once everything
// upstream is quantised, C = E[x y^T] and G = E[y y^T], the ridge regression
//     min_V  E |W x - V y|^2 + lambda |V - W|^2   gives   V = W + W (C - G) (G + lambda I)^-1,
// shrunk toward W, never toward zero.
namespace leadline::compensation {

// weight: rows x features; cross and gram: groups x features x features, of `groups` runs of rows. `out` gets V.
// `damping` is lambda over the mean diagonal of G: taken as it is, or times ten until the factorisation succeeds. Returns
// the largest that a group needed.
double compensate(std::span<const float> weight, std::span<const double> cross, std::span<const double> gram,
                  std::int64_t rows, std::int64_t features, std::int64_t groups, double damping, std::span<float> out,
                  int threads);

}  // namespace leadline::compensation
