#include "leadline/compensation.hpp"

#include "bindings.hpp"

namespace leadline::bindings {

void bind_compensation(py::module_& module) {
    module.def(
        "compensate",
        [](const Array<float>& weight, const Array<double>& cross, const Array<double>& gram, std::int64_t rows,
           std::int64_t features, std::int64_t groups, double damping, Array<float>& out, int threads) {
            const auto w = read(weight);
            const auto c = read(cross), g = read(gram);
            const auto to = write(out);
            return released([&] { return compensation::compensate(w, c, g, rows, features, groups, damping, to, threads); });
        },
        py::arg("weight").noconvert(), py::arg("cross").noconvert(), py::arg("gram").noconvert(), py::arg("rows"),
        py::arg("features"), py::arg("groups"), py::arg("damping"), py::arg("out").noconvert(), py::arg("threads"));
}

}  // namespace leadline::bindings
