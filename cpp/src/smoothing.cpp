#include "leadline/smoothing.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <string>
#include <vector>

#include "leadline/error.hpp"
#include "parallel.hpp"

namespace leadline::smoothing {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Rows of a task and features of a product. Fixed, so that products have the same shape for any number of threads.
constexpr std::int64_t tile_rows = 64, panel_features = 128;

// tr(D G D^T) = tr(D U D^T) for U that holds G's blocks on the diagonal, twice those above it, and none below: half
// the products.
Matrix upper(const Layer& layer) {
    const std::int64_t n = layer.features();
    Matrix out(n, n);
    for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
            const double value = layer.gram[i * n + j];
            out(i, j) = static_cast<float>(i / panel_features < j / panel_features ? 2.0 * value : value);
        }
    return out;
}

struct Range {
    double lo = 0.0, hi = 0.0;
};

class Candidate {
public:
    Candidate(const Layer& layer, std::span<const double> channels) : layer_(layer) {
        for (const double s : channels) scale_.insert(scale_.end(), static_cast<std::size_t>(layer.taps), s);
    }

    // A row as it would be stored, in float.
    void scale(std::int64_t row, float* out) const {
        const float* weight = &layer_.weight[row * layer_.features()];
        for (std::size_t j = 0; j < scale_.size(); ++j) out[j] = static_cast<float>(weight[j] * scale_[j]);
    }

    static Range range(const float* x, std::int64_t count) {
        const Eigen::Map<const Eigen::ArrayXf> values(x, count);
        return {values.minCoeff(), values.maxCoeff()};
    }

    Range whole() const {
        Range all;
        std::vector<float> row(scale_.size());
        for (std::int64_t r = 0; r < layer_.rows; ++r) {
            scale(r, row.data());
            const Range of_row = range(row.data(), layer_.features());
            all = {std::min(all.lo, of_row.lo), std::max(all.hi, of_row.hi)};
        }
        return all;
    }

    // x, `count` entries of a scaled row from feature `first` on, becomes what rounding adds to it, divided by the
    // scales again.
    void difference(float* x, std::int64_t first, std::int64_t count, const affine::Grid& grid,
                    const affine::Scheme& scheme) const {
        const affine::Steps steps(grid, scheme);
        for (std::int64_t j = 0; j < count; ++j) {
            const double step = affine::nearest_step(x[j], steps.scale, steps.lowest, steps.highest);
            x[j] = static_cast<float>((step * steps.scale - x[j]) / scale_[first + j]);
        }
    }

private:
    const Layer& layer_;
    std::vector<double> scale_;  // of each feature
};

// Sum of (D U) o D over a tile of rows.
double energy(const Matrix& differences, const Matrix& upper, Matrix& product) {
    const std::int64_t n = differences.cols();
    std::vector<double> sums(panel_features, 0.0);
    for (std::int64_t first = 0; first < n; first += panel_features) {
        const std::int64_t count = std::min(panel_features, n - first), rows = first + count;
        product.noalias() = differences.leftCols(rows) * upper.block(0, first, rows, count);
        for (std::int64_t r = 0; r < differences.rows(); ++r)
            for (std::int64_t j = 0; j < count; ++j)
                sums[j] += static_cast<double>(product(r, j)) * differences(r, first + j);
    }
    double total = 0.0;
    for (const double sum : sums) total += sum;
    return total;
}

}  // namespace

void weight_errors(const Layer& layer, std::span<const double> scales, const affine::Scheme& scheme, std::int64_t block,
                   std::span<double> out, int threads) {
    const std::int64_t n = layer.features(), candidates = static_cast<std::int64_t>(out.size());
    require(layer.rows > 0 && layer.channels > 0 && layer.taps > 0 && block >= 0 && (block == 0 || n % block == 0) &&
                static_cast<std::int64_t>(layer.weight.size()) == layer.rows * n &&
                static_cast<std::int64_t>(layer.gram.size()) == n * n &&
                static_cast<std::int64_t>(scales.size()) == candidates * layer.channels,
            "smoothing", "weight, gram, scales and out must fit each other",
            std::to_string(layer.rows) + " rows of " + std::to_string(n) + " features");
    const Matrix doubled = upper(layer);
    std::vector<Candidate> tried;
    for (std::int64_t c = 0; c < candidates; ++c)
        tried.emplace_back(layer, scales.subspan(c * layer.channels, layer.channels));
    std::vector<Range> whole(tried.size());
    if (block == 0) parallel_for(candidates, threads, [&](std::int64_t c, int) { whole[c] = tried[c].whole(); });

    const RowTiles tiles(layer.rows, 1, tile_rows);
    const std::int64_t grid_features = block == 0 ? n : block;
    std::vector<double> partial(static_cast<std::size_t>(candidates * tiles.count()));
    parallel_for(candidates * tiles.count(), threads, [&](std::int64_t task, int) {
        const std::int64_t c = task / tiles.count();
        const auto [group, first, count] = tiles.at(task % tiles.count());
        thread_local Matrix differences, product;
        differences.resize(count, n);
        for (std::int64_t r = 0; r < count; ++r) {
            float* row = differences.row(r).data();
            tried[c].scale(first + r, row);
            for (std::int64_t begin = 0; begin < n; begin += grid_features) {
                const Range range = block == 0 ? whole[c] : Candidate::range(row + begin, grid_features);
                const affine::Grid grid = affine::choose(range.lo, range.hi, scheme);
                tried[c].difference(row + begin, begin, grid_features, grid, scheme);
            }
        }
        partial[task] = energy(differences, doubled, product);
    });
    for (std::int64_t c = 0; c < candidates; ++c) {
        out[c] = 0.0;
        for (std::int64_t t = 0; t < tiles.count(); ++t) out[c] += partial[c * tiles.count() + t];
    }
}

}  // namespace leadline::smoothing
