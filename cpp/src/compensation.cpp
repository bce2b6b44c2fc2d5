#include "leadline/compensation.hpp"

#include <Eigen/Cholesky>
#include <algorithm>
#include <string>
#include <vector>

#include "leadline/error.hpp"
#include "parallel.hpp"

namespace leadline::compensation {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixView = Eigen::Map<const Matrix>;

constexpr std::int64_t tile_rows = 32;  // of a task
constexpr int attempts = 12;
constexpr double negligible = 1e-10;

struct System {
    Eigen::LLT<Eigen::MatrixXd> cholesky;
    double damping = 0.0;
    std::int64_t rank = 0;
};

System factorise(const MatrixView& gram, double damping) {
    System system;
    const double mean = std::max(gram.diagonal().mean(), 1e-300);
    const Eigen::VectorXd pivots = Eigen::LDLT<Eigen::MatrixXd>(gram).vectorD();
    system.rank = (pivots.array() > negligible * pivots.cwiseAbs().maxCoeff()).count();
    for (int attempt = 0;; ++attempt, damping = std::max(damping * 10.0, 1e-8)) {
        Eigen::MatrixXd damped = gram;
        damped.diagonal().array() += damping * mean;
        system.cholesky.compute(damped);
        system.damping = damping;
        if (system.cholesky.info() == Eigen::Success) return system;
        require(attempt < attempts, "compensate", "the Gram must become positive definite by damping",
                std::to_string(damping));
    }
}

}  // namespace

Solution compensate(std::span<const float> weight, std::span<const double> cross, std::span<const double> gram,
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
        systems[group] = factorise(MatrixView(&gram[group * square], features, features), damping);
    });
    const RowTiles tiles(rows, groups, tile_rows);
    parallel_for(tiles.count(), threads, [&](std::int64_t task, int) {
        const auto [group, first, count] = tiles.at(task);
        Matrix w(count, features);
        for (std::int64_t i = 0; i < count * features; ++i) w.data()[i] = weight[first * features + i];
        const MatrixView c(&cross[group * square], features, features), g(&gram[group * square], features, features);
        // V - W = W (C - G) (G + lambda I)^-1: the system is symmetric, so its transpose is solved.
        const Eigen::MatrixXd error = ((c - g).transpose() * w.transpose());
        const Eigen::MatrixXd change = systems[group].cholesky.solve(error);
        for (std::int64_t r = 0; r < count; ++r)
            for (std::int64_t j = 0; j < features; ++j)
                out[(first + r) * features + j] = static_cast<float>(w(r, j) + change(j, r));
    });
    Solution solution{0.0, features};
    for (const System& system : systems) {
        solution.damping = std::max(solution.damping, system.damping);
        solution.rank = std::min(solution.rank, system.rank);
    }
    return solution;
}

}  // namespace leadline::compensation
