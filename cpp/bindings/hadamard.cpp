#include "leadline/hadamard.hpp"

#include <string>

#include "bindings.hpp"
#include "leadline/error.hpp"

namespace leadline::bindings {
namespace {

using hadamard::Plan;

template <class T>
void bind_apply(py::class_<Plan>& plan) {
    plan.def(
        "apply",
        [](const Plan& self, const Array<T>& x, std::int64_t inner, const Array<T>& before, const Array<T>& after,
           const Array<std::int32_t>& take, const Array<std::int32_t>& put, Array<T>& out, int threads) {
            const hadamard::Around<T> around{read(before), read(after), read(take), read(put)};
            const auto from = read(x);
            const auto to = write(out);
            released([&] { hadamard::apply<T>(self, around, from, inner, to, threads); });
        },
        py::arg("x").noconvert(), py::arg("inner"), py::arg("before").noconvert(), py::arg("after").noconvert(),
        py::arg("take").noconvert(), py::arg("put").noconvert(), py::arg("out").noconvert(), py::arg("threads"));
}

}  // namespace

void bind_hadamard(py::module_& module) {
    py::class_<Plan> plan(module, "HadamardPlan", py::module_local());
    plan.def(py::init([](std::int64_t blocks, std::int64_t doublings) {
                 require(blocks > 0 && doublings >= 0 && doublings <= 30, "hadamard", "a plan must have a size",
                         std::to_string(blocks) + " blocks");
                 Plan made;
                 made.copies = blocks, made.doublings = doublings;
                 return made;
             }),
             py::arg("blocks"), py::arg("doublings"));
    plan.def(
        "add_base",
        [](Plan& self, const Array<std::int8_t>& rows, std::int64_t order) {
            self.bases.push_back(hadamard::base(read(rows), order));
        },
        py::arg("rows").noconvert(), py::arg("order"));
    bind_apply<float>(plan);
    bind_apply<double>(plan);
}

}  // namespace leadline::bindings
