#include <omp.h>

#include <Eigen/Core>
#include <string>

#include "bindings.hpp"
#include "leadline/instruction_set.hpp"

namespace leadline::bindings {
namespace {

// Whether this processor and operating system run x86-64-v3 code (AVX2, FMA, BMI, F16C).
bool supports_v3() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("avx");
#else
    return false;
#endif
}

py::dict build_info() {
    py::dict info;
    info["isa"] = instruction_set();
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    info["build_type"] = LEADLINE_BUILD_TYPE;
    info["cplusplus"] = static_cast<std::int64_t>(__cplusplus);
    info["openmp"] = _OPENMP;
    info["max_threads"] = omp_get_max_threads();
    info["eigen"] = std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
                    std::to_string(EIGEN_MINOR_VERSION);
    info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
    return info;
}

void bind(py::module_& module) {
    main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
    module.def("supports_v3", &supports_v3);
    module.def("build_info", &build_info);
    bind_affine(module);
    bind_observers(module);
    bind_gram(module);
    bind_rounding(module);
    bind_compensation(module);
    bind_hadamard(module);
    bind_polishing(module);
    bind_smoothing(module);
}

}  // namespace
}  // namespace leadline::bindings

// Python calls the one that bears the file's name.
PYBIND11_MODULE(_core, module) { leadline::bindings::bind(module); }
PYBIND11_MODULE(_core_v2, module) { leadline::bindings::bind(module); }
PYBIND11_MODULE(_core_v3, module) { leadline::bindings::bind(module); }
