#include "leadline/smoothing.hpp"

#include "bindings.hpp"

namespace leadline::bindings {

void bind_smoothing(py::module_& module) {
    module.def(
        "smoothing_weight_errors",
        [](const Array<float>& weight, const Array<double>& gram, std::int64_t rows, std::int64_t channels,
           std::int64_t taps, const Array<double>& scales, const affine::Scheme& scheme, std::int64_t block,
           Array<double>& out, int threads) {
            const smoothing::Layer layer{read(weight), read(gram), rows, channels, taps};
            const auto candidates = read(scales);
            const auto to = write(out);
            released([&] { smoothing::weight_errors(layer, candidates, scheme, block, to, threads); });
        },
        py::arg("weight").noconvert(), py::arg("gram").noconvert(), py::arg("rows"), py::arg("channels"),
        py::arg("taps"), py::arg("scales").noconvert(), py::arg("scheme"), py::arg("block"),
        py::arg("out").noconvert(), py::arg("threads"));
}

}  // namespace leadline::bindings
