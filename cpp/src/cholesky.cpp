#include "cholesky.hpp"

#include <Eigen/Cholesky>

namespace leadline {

bool factorise_lower(Eigen::MatrixXd& matrix) {
    return Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>>(matrix).info() == Eigen::Success;
}

}  // namespace leadline
