#include "leadline/gram.hpp"

#include <pybind11/stl.h>

#include <array>

#include "bindings.hpp"

namespace leadline::bindings {
namespace {

using Pair = std::array<std::int64_t, 2>;
using Four = std::array<std::int64_t, 4>;

}  // namespace

void bind_gram(py::module_& module) {
    module.def(
        "gram_update",
        [](const Array<float>& x, std::int64_t rows, std::int64_t features, const Array<float>& pivot,
           Array<double>& sum, Array<double>& second, int threads) {
            const auto in = read(x), origin = read(pivot);
            const auto first = write(sum), moments = write(second);
            return released([&] { return gram::update(in, rows, features, first, moments, threads, origin); });
        },
        py::arg("x").noconvert(), py::arg("rows"), py::arg("features"), py::arg("pivot").noconvert(), py::arg("sum").noconvert(),
        py::arg("second").noconvert(), py::arg("threads"));
    module.def(
        "conv_gram_update",
        [](const Array<float>& x, const Four& shape, std::int64_t groups, const Pair& kernel, const Pair& strides,
           const Pair& dilations, const Four& pads, const Array<float>& pivot, Array<double>& sum,
           Array<double>& second, int threads) {
            const auto in = read(x), origin = read(pivot);
            const auto first = write(sum), moments = write(second);
            const gram::Conv conv{shape[0],   shape[1],     shape[2],     shape[3], groups,  kernel[0], kernel[1], strides[0],
                                  strides[1], dilations[0], dilations[1], pads[0],  pads[1], pads[2],   pads[3]};
            return released([&] { return gram::update_conv(in, conv, first, moments, threads, origin); });
        },
        py::arg("x").noconvert(), py::arg("shape"), py::arg("groups"), py::arg("kernel"), py::arg("strides"),
        py::arg("dilations"), py::arg("pads"), py::arg("pivot").noconvert(), py::arg("sum").noconvert(), py::arg("second").noconvert(),
        py::arg("threads"));
    module.def(
        "gram_mirror",
        [](Array<double>& second, std::int64_t groups, std::int64_t features, int threads) {
            const auto moments = write(second);
            released([&] { gram::mirror(moments, groups, features, threads); });
        },
        py::arg("second").noconvert(), py::arg("groups"), py::arg("features"), py::arg("threads"));
}

}  // namespace leadline::bindings
