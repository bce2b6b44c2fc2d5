#pragma once
#include <Eigen/Core>
#include <algorithm>
#include <string>

#include "leadline/error.hpp"

namespace leadline {

// The lower triangle of `matrix`, symmetric, becomes its Cholesky factor. False where it is not positive definite.
bool factorise_lower(Eigen::MatrixXd& matrix);

// The Cholesky factor of what `damped` writes for a damping: that asked for, ten times it where the matrix is not
// positive definite, and so on. Returns the damping that was enough.
template <class Damped>
double factorise_damped(Eigen::MatrixXd& matrix, double damping, const char* function, Damped&& damped) {
    for (int attempt = 0;; ++attempt, damping = std::max(damping * 10.0, 1e-8)) {
        damped(matrix, damping);
        if (factorise_lower(matrix)) return damping;
        require(attempt < 12, function, "the Gram must become positive definite by damping", std::to_string(damping));
    }
}

}  // namespace leadline
