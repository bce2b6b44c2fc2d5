#include "rounding_problem.hpp"

namespace leadline::rounding {

void descend_coupled(const Problem& p, const Descent& options, std::span<const double> fisher,
                     std::span<std::int32_t> codes) {
    require_fit(p, static_cast<std::int64_t>(codes.size()));
    require(p.groups == 1, "descend", "a Fisher factor needs a layer of one group",
            std::to_string(p.groups) + " groups");
    require(static_cast<std::int64_t>(fisher.size()) == p.rows * p.rows, "descend", "fisher must be rows x rows",
            std::to_string(fisher.size()) + " values");
    const auto order = by_diagonal(p, 0);
    const MatrixF gram = permuted(p, 0, order);
    const MatrixF weights = Eigen::Map<const MatrixD>(fisher.data(), p.rows, p.rows).cast<float>();
    MatrixF differences(p.rows, p.features);
    for (std::int64_t row = 0; row < p.rows; ++row)
        for (std::int64_t j = 0; j < p.features; ++j)
            differences(row, j) =
                static_cast<float>(difference(p, row, order[j], codes[row * p.features + order[j]]));
    Eigen::RowVectorXf together(p.features), product(p.features);
    Watch watch;
    // Whether a sweep has changed anything.
    const auto sweep_once = [&] {
        bool changed = false;
        for (std::int64_t row = 0; row < p.rows; ++row) {
            watch.look();
            const float weight = weights(row, row);
            if (!(weight > 0.0f)) continue;  // an output that nothing depends on
            // With all other rows fixed, this row's error is a plain layer's, its difference shifted by theirs.
            together.noalias() = weights.row(row) * differences;
            together /= weight;
            product.noalias() = together * gram;
            for (std::int64_t j = 0; j < p.features; ++j) {
                const float delta = descend_code(p, options, row, order[j], product[j], gram(j, j),
                                                 codes[row * p.features + order[j]]);
                if (delta == 0.0f) continue;
                differences(row, j) += delta;
                product += delta * gram.row(j);
                changed = true;
            }
        }
        return changed;
    };
    all_or_nothing(codes, [&] {
        for (std::int64_t sweep = 0; sweep < options.sweeps && sweep_once();) ++sweep;
    });
}

}  // namespace leadline::rounding
