#include "leadline/polishing.hpp"

#include <vector>

#include "bindings.hpp"

namespace leadline::bindings {
namespace {

using observers::Histogram;

template <class Call>
void bind_pass(py::module_& module, const char* name, Call call) {
    module.def(
        name,
        [call](const Array<float>& x, const LayoutTuple& layout, const Array<float>& omega, Array<float>& out,
               int threads) {
            const auto in = read(x), bends = read(omega);
            const auto result = write(out);
            return released([&] { return call(in, layout_of(layout), bends, result, threads); });
        },
        py::arg("x").noconvert(), py::arg("layout"), py::arg("omega").noconvert(), py::arg("out").noconvert(),
        py::arg("threads"));
}

}  // namespace

void bind_polishing(py::module_& module) {
    bind_pass(module, "polish", &polishing::polish);
    bind_pass(module, "unpolish", &polishing::unpolish);
    module.def(
        "fake_quantize_polished",
        [](const Array<float>& x, const LayoutTuple& layout, const Array<float>& omega, const Array<float>& scale,
           const Array<std::int32_t>& zero, const affine::Scheme& scheme, Array<float>& out, int threads) {
            const auto in = read(x), bends = read(omega), scales = read(scale);
            const auto zeros = read(zero);
            const auto result = write(out);
            return released([&] {
                return polishing::fake_quantize(in, layout_of(layout), bends, scales, zeros, scheme, result, threads);
            });
        },
        py::arg("x").noconvert(), py::arg("layout"), py::arg("omega").noconvert(), py::arg("scale").noconvert(),
        py::arg("zero_point").noconvert(), py::arg("scheme"), py::arg("out").noconvert(), py::arg("threads"));
    module.def(
        "polished_error",
        [](const Histogram& histogram, const affine::Scheme& scheme, const Array<float>& omega,
           const Array<float>& scale, const Array<std::int32_t>& zero, Array<double>& error, int threads) {
            const auto bends = read(omega), scales = read(scale);
            const auto zeros = read(zero);
            const auto out = write(error);
            released([&] { polishing::error(histogram, bends, scales, zeros, scheme, out, threads); });
        },
        py::arg("histogram"), py::arg("scheme"), py::arg("omega").noconvert(), py::arg("scale").noconvert(),
        py::arg("zero_point").noconvert(), py::arg("error").noconvert(), py::arg("threads"));
    module.def(
        "choose_polishing",
        [](const Histogram& histogram, const affine::Scheme& scheme, const Array<double>& bends, bool affine,
           Array<float>& omega, Array<float>& lo, Array<float>& hi, Array<double>& error, Array<std::int8_t>& kind,
           int threads) {
            const auto pairs = read(bends);
            std::vector<polishing::Bend> tried;
            for (std::size_t i = 0; i + 1 < pairs.size(); i += 2) tried.push_back({pairs[i], pairs[i + 1]});
            const auto omegas = write(omega), low = write(lo), high = write(hi);
            const auto errors = write(error);
            const auto kinds = write(kind);
            std::vector<polishing::Choice> choices(histogram.channels.size());
            for (const std::size_t size : {omegas.size(), low.size(), high.size(), errors.size(), kinds.size()})
                require(size == choices.size(), "polishing", "there must be one entry a channel", std::to_string(size));
            released([&] { polishing::choose(histogram, scheme, tried, affine, choices, threads); });
            for (std::size_t c = 0; c < choices.size(); ++c) {
                omegas[c] = choices[c].omega, low[c] = choices[c].lo, high[c] = choices[c].hi;
                errors[c] = choices[c].error, kinds[c] = static_cast<std::int8_t>(choices[c].kind);
            }
        },
        py::arg("histogram"), py::arg("scheme"), py::arg("bends").noconvert(), py::arg("affine"),
        py::arg("omega").noconvert(), py::arg("lo").noconvert(), py::arg("hi").noconvert(),
        py::arg("error").noconvert(), py::arg("kind").noconvert(), py::arg("threads"));
}

}  // namespace leadline::bindings
