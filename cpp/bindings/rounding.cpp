#include "leadline/rounding.hpp"

#include <pybind11/stl.h>

#include "bindings.hpp"

namespace leadline::bindings {
namespace {

using rounding::Problem;

}  // namespace

void bind_rounding(py::module_& module) {
    // The arrays must outlive the problem: Python keeps them.
    py::class_<Problem>(module, "RoundingProblem", py::module_local())
        .def(py::init([](const Array<float>& weight, const Array<double>& gram, const Array<float>& scale,
                         const Array<std::int32_t>& zero_point, std::int64_t rows, std::int64_t features,
                         std::int64_t groups, std::int64_t blocks, std::int64_t qmin, std::int64_t qmax) {
                 return Problem{read(weight), read(gram), read(scale), read(zero_point), rows, features, groups, blocks, qmin, qmax};
             }),
             py::arg("weight").noconvert(), py::arg("gram").noconvert(), py::arg("scale").noconvert(),
             py::arg("zero_point").noconvert(), py::arg("rows"), py::arg("features"), py::arg("groups"),
             py::arg("blocks"), py::arg("qmin"), py::arg("qmax"), py::keep_alive<1, 2>(), py::keep_alive<1, 3>(),
             py::keep_alive<1, 4>(), py::keep_alive<1, 5>())
        .def("error",
             [](const Problem& problem, const Array<std::int32_t>& codes, Array<double>& out, int threads) {
                 const auto in = read(codes);
                 const auto to = write(out);
                 released([&] { rounding::error(problem, in, to, threads); });
             },
             py::arg("codes").noconvert(), py::arg("out").noconvert(), py::arg("threads"))
        .def("descend",
             [](const Problem& problem, Array<std::int32_t>& codes, std::int64_t sweeps, bool neighbours, double damping,
                int threads) {
                 const auto to = write(codes);
                 released([&] { rounding::descend(problem, {sweeps, neighbours, damping}, to, threads); });
             },
             py::arg("codes").noconvert(), py::arg("sweeps"), py::arg("neighbours"), py::arg("damping"),
             py::arg("threads"))
        .def("descend_coupled",
             [](const Problem& problem, Array<std::int32_t>& codes, const Array<double>& fisher, std::int64_t sweeps,
                bool neighbours) {
                 const auto to = write(codes);
                 const auto weights = read(fisher);
                 released([&] { rounding::descend_coupled(problem, {sweeps, neighbours, 0.0}, weights, to); });
             },
             py::arg("codes").noconvert(), py::arg("fisher").noconvert(), py::arg("sweeps"), py::arg("neighbours"))
        .def("gptq",
             [](const Problem& problem, Array<std::int32_t>& codes, double damping, bool ordered, int threads) {
                 const auto to = write(codes);
                 released([&] { rounding::gptq(problem, {damping, ordered}, to, threads); });
             },
             py::arg("codes").noconvert(), py::arg("damping"), py::arg("ordered"), py::arg("threads"))
        .def("adaround",
             [](const Problem& problem, Array<std::int32_t>& codes, std::int64_t iterations, double rate,
                double regularisation, double warm_start, double beta_start, double beta_end, double damping,
                int threads,
                const std::optional<Array<float>>& inputs, const std::optional<Array<float>>& outputs,
                std::int64_t count, float low, float high) {
                 const auto to = write(codes);
                 const rounding::AdaRound options{iterations, rate, regularisation, warm_start, beta_start, beta_end,
                                                  damping};
                 if (!inputs || !outputs) {
                     released([&] { rounding::adaround(problem, options, to, threads); });
                     return;
                 }
                 const rounding::Clipped clipped{read(*inputs), read(*outputs), count, low, high};
                 released([&] { rounding::adaround(problem, options, to, threads, &clipped); });
             },
             py::arg("codes").noconvert(), py::arg("iterations"), py::arg("rate"), py::arg("regularisation"),
             py::arg("warm_start"), py::arg("beta_start"), py::arg("beta_end"), py::arg("damping"),
             py::arg("threads"), py::arg("inputs") = py::none(), py::arg("outputs") = py::none(), py::arg("count") = 0,
             py::arg("low") = 0.0f, py::arg("high") = 0.0f);
}

}  // namespace leadline::bindings
