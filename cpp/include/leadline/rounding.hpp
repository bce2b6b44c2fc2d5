#pragma once
#include <cstdint>
#include <span>

// Rounding weights against a Gram matrix G = E[x x^T] of their inputs: the squared error of a row's output is
// (q - w) G (q - w)^T for its dequantised weights q, so that no sample is needed in the loop. Rows are independent.
namespace leadline::rounding {

// Rows of weights, their grids, and the Gram of each group of rows. A linear layer has one group; a grouped convolution
// has one for each of its groups, of rows / groups consecutive rows.
struct Problem {
    std::span<const float> weight;             // rows x features: what the rounded rows are to reproduce
    std::span<const double> gram;              // groups x features x features, symmetric
    std::span<const float> scale;              // rows x blocks; a block is features / blocks consecutive features
    std::span<const std::int32_t> zero_point;  // rows x blocks
    std::int64_t rows, features, groups, blocks;
    std::int64_t qmin, qmax;

    std::int64_t group_rows() const { return rows / groups; }
    std::int64_t block_size() const { return features / blocks; }
};

// The error of each row: (q - w) G (q - w)^T, in double.
void error(const Problem& problem, std::span<const std::int32_t> codes, std::span<double> out, int threads);

struct Descent {
    std::int64_t sweeps = 50;   // at most; a row stops by itself when a sweep changes nothing
    bool neighbours = false;    // only the two codes beside w / scale, as AdaRound's choice is
    double damping = 0.0;       // of the Gram's mean diagonal, added to it
};

// Cyclic coordinate descent on the codes, in place: each takes the value that is best with all others fixed. The error
// of a row never rises by more than the rounding of float products, which `error` judges.
void descend(const Problem& problem, const Descent& options, std::span<std::int32_t> codes, int threads);

// Descent where outputs matter jointly: the error is tr(F D G D^T) for the rows' differences D, with F = E[g g^T] over
// the gradients g of a loss by the layer's outputs (rows x rows, symmetric, of positive diagonal; one group). Each row
// in turn makes up for what the others leave.
void descend_coupled(const Problem& problem, const Descent& options, std::span<const double> fisher,
                     std::span<std::int32_t> codes);

struct Gptq {
    double damping = 0.01;    // of the Gram's mean diagonal, added to it
    bool ordered = true;      // columns of the largest diagonal first ("act_order")
};

// GPTQ (Frantar et al., 2022): columns are rounded one after another, and the error of each is made up for by those that
// follow. Writes codes. A Gram that is not positive definite with the damping asked for gets ten times it, and so on.
void gptq(const Problem& problem, const Gptq& options, std::span<std::int32_t> codes, int threads);

struct AdaRound {
    std::int64_t iterations = 120;
    double rate = 0.1;
    double regularisation = 10.0;  // in units of the row's error of nearest rounding, spread over its features
    double warm_start = 0.2;       // share of the iterations without regularisation
    double beta_start = 20.0, beta_end = 2.0;
    double damping = 0.0;          // of the Gram's mean diagonal, added to it
};

// Samples of a layer that a ReLU or Clip follows: only errors that come through it count.
struct Clipped {
    std::span<const float> inputs;   // groups x count x features
    std::span<const float> outputs;  // rows x count: the float layer's, bias included, before the activation
    std::int64_t count;
    float low, high;
};

// AdaRound (Nagel et al., 2020) in Gram form: a rectified sigmoid for each weight chooses between the two codes beside
// it, and Adam lowers the row's error plus a regulariser that drives it to 0 or 1. `codes` start it: a weight whose code
// is one of its two neighbours begins on that side. A row stops when all its choices are settled. Writes codes.
// With `clipped`, the error is taken behind the activation, over its samples.
void adaround(const Problem& problem, const AdaRound& options, std::span<std::int32_t> codes, int threads,
              const Clipped* clipped = nullptr);

}  // namespace leadline::rounding
