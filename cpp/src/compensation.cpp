#include "leadline/compensation.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "cholesky.hpp"
#include "leadline/error.hpp"
#include "parallel.hpp"

namespace leadline::compensation {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixView = Eigen::Map<const Matrix>;

constexpr std::int64_t tile_rows = 64;  // of a task

struct System {
    Matrix excess;  // C - G
    Eigen::MatrixXd factor;
    double damping = 0.0;
};

}  // namespace

double compensate(std::span<const float> weight, std::span<const double> cross, std::span<const double> gram,
                  std::int64_t rows, std::int64_t features, std::int64_t groups, double damping, std::span<float> out,
                  int threads) {
    const std::int64_t square = features * features;
    require(rows > 0 && features > 0 && groups > 0 && rows % groups == 0 &&
                static_cast<std::int64_t>(weight.size()) == rows * features && out.size() == weight.size() &&
                static_cast<std::int64_t>(cross.size()) == groups * square && cross.size() == gram.size(),
            "compensate", "weight, cross, gram and out must fit each other",
            std::to_string(rows) + " rows of " + std::to_string(features) + " features");
    std::vector<System> systems(static_cast<std::size_t>(groups));
    parallel_for(groups, threads, [&](std::int64_t group, int) {
        const MatrixView c(&cross[group * square], features, features), g(&gram[group * square], features, features);
        System& system = systems[group];
        system.excess = c - g;
        system.damping = factorise_damped(system.factor, damping, "compensate", [&](Eigen::MatrixXd& damped, double tried) {
            damped = g.transpose();  // symmetric: a plain copy
            damped.diagonal().array() += tried * std::max(g.diagonal().mean(), 1e-300);
        });
    });
    const RowTiles tiles(rows, groups, tile_rows);
    parallel_for(tiles.count(), threads, [&](std::int64_t task, int) {
        const auto [group, first, count] = tiles.at(task);
        const Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> w(
            &weight[first * features], count, features);
        // V - W = W (C - G) (G + lambda I)^-1: the system is symmetric, so its transpose is solved.
        Matrix change = w.cast<double>() * systems[group].excess;
        Eigen::Map<Eigen::MatrixXd> transposed(change.data(), features, count);
        const Eigen::MatrixXd& factor = systems[group].factor;
        factor.triangularView<Eigen::Lower>().solveInPlace(transposed);
        factor.transpose().triangularView<Eigen::Upper>().solveInPlace(transposed);
        for (std::int64_t i = 0; i < count * features; ++i)
            out[first * features + i] = static_cast<float>(weight[first * features + i] + change.data()[i]);
    });
    double needed = 0.0;
    for (const System& system : systems) needed = std::max(needed, system.damping);
    return needed;
}

}  // namespace leadline::compensation
