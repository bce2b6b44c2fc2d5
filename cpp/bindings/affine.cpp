#include "leadline/affine.hpp"

#include <pybind11/stl.h>

#include "bindings.hpp"

namespace leadline::bindings {
namespace {

template <class Code>
void bind_codes(py::module_& module) {
    module.def(
        "quantize",
        [](const Array<float>& x, const LayoutTuple& layout, const Array<float>& scale, const Array<std::int32_t>& zero,
           const affine::Scheme& scheme, Array<Code>& codes, int threads) {
            const auto in = read(x), scales = read(scale);
            const auto zeros = read(zero);
            const auto out = write(codes);
            return released([&] {
                return affine::quantize<Code>(in, layout_of(layout), scales, zeros, scheme, out, threads);
            });
        },
        py::arg("x").noconvert(), py::arg("layout"), py::arg("scale").noconvert(), py::arg("zero_point").noconvert(),
        py::arg("scheme"), py::arg("codes").noconvert(), py::arg("threads"));
    module.def(
        "dequantize",
        [](const Array<Code>& codes, const LayoutTuple& layout, const Array<float>& scale,
           const Array<std::int32_t>& zero, Array<float>& x, int threads) {
            const auto in = read(codes);
            const auto scales = read(scale);
            const auto zeros = read(zero);
            const auto out = write(x);
            released([&] { affine::dequantize<Code>(in, layout_of(layout), scales, zeros, out, threads); });
        },
        py::arg("codes").noconvert(), py::arg("layout"), py::arg("scale").noconvert(),
        py::arg("zero_point").noconvert(), py::arg("x").noconvert(), py::arg("threads"));
}

}  // namespace

void bind_affine(py::module_& module) {
    py::class_<affine::Scheme>(module, "Scheme", py::module_local())
        .def(py::init([](std::int64_t qmin, std::int64_t qmax, std::int64_t symmetric_zero, bool symmetric, bool aimet) {
                 return affine::Scheme{qmin, qmax, symmetric_zero, symmetric,
                                       aimet ? affine::Fit::aimet : affine::Fit::absmax};
             }),
             py::arg("qmin"), py::arg("qmax"), py::arg("symmetric_zero"), py::arg("symmetric"), py::arg("aimet"));
    module.def(
        "choose_grid",
        [](const Array<double>& lo, const Array<double>& hi, const affine::Scheme& scheme, Array<float>& scale,
           Array<std::int32_t>& zero_point) {
            const auto low = read(lo), high = read(hi);
            const auto scales = write(scale);
            const auto zeros = write(zero_point);
            released([&] { affine::choose(low, high, scheme, scales, zeros); });
        },
        py::arg("lo").noconvert(), py::arg("hi").noconvert(), py::arg("scheme"), py::arg("scale").noconvert(),
        py::arg("zero_point").noconvert());
    module.def(
        "range",
        [](const Array<float>& x, const LayoutTuple& layout, Array<float>& lo, Array<float>& hi, int threads) {
            const auto in = read(x);
            const auto low = write(lo), high = write(hi);
            return released([&] { return affine::range(in, layout_of(layout), low, high, threads); });
        },
        py::arg("x").noconvert(), py::arg("layout"), py::arg("lo").noconvert(), py::arg("hi").noconvert(),
        py::arg("threads"));
    module.def(
        "fake_quantize",
        [](const Array<float>& x, const LayoutTuple& layout, const Array<float>& scale, const Array<std::int32_t>& zero,
           const affine::Scheme& scheme, Array<float>& out, int threads) {
            const auto in = read(x), scales = read(scale);
            const auto zeros = read(zero);
            const auto result = write(out);
            return released([&] {
                return affine::fake_quantize(in, layout_of(layout), scales, zeros, scheme, result, threads);
            });
        },
        py::arg("x").noconvert(), py::arg("layout"), py::arg("scale").noconvert(), py::arg("zero_point").noconvert(),
        py::arg("scheme"), py::arg("out").noconvert(), py::arg("threads"));
    bind_codes<std::int8_t>(module);
    bind_codes<std::uint8_t>(module);
    bind_codes<std::int16_t>(module);
    bind_codes<std::uint16_t>(module);
    bind_codes<std::int32_t>(module);
}

}  // namespace leadline::bindings
