#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "leadline/error.hpp"
#include "leadline/interrupt.hpp"
#include "leadline/layout.hpp"

namespace leadline::bindings {
namespace py = pybind11;

// Arguments are C-contiguous arrays of exactly the named type, never converted (bind with .noconvert()).
template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
std::span<const T> read(const Array<T>& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}
template <class T>
std::span<T> write(Array<T>& array) {  // throws for a read-only array
    return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

using LayoutTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
inline Layout layout_of(const LayoutTuple& t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t)}; }

// The only thread that signals reach: on it, long calls ask now and then whether one waits, and Ctrl-C gives them up.
inline unsigned long main_thread = 0;
inline bool signal_waits() {
    const PyGILState_STATE state = PyGILState_Ensure();
    const bool waits = PyErr_CheckSignals() != 0;
    PyGILState_Release(state);
    return waits;
}

// Runs work without the GIL. Safe because the spans were taken before, the arguments keep their arrays alive,
// and the work touches no Python object.
template <class Work>
auto released(Work&& work) {
    try {
        py::gil_scoped_release release;
        std::optional<InterruptHook> hook;
        if (PyThread_get_thread_ident() == main_thread) hook.emplace(&signal_waits);
        return std::forward<Work>(work)();
    } catch (const Interrupted&) {
        throw py::error_already_set();  // what Python's handler raised
    }
}

void bind_affine(py::module_& module);
void bind_observers(py::module_& module);
void bind_gram(py::module_& module);
void bind_rounding(py::module_& module);
void bind_compensation(py::module_& module);
void bind_hadamard(py::module_& module);
void bind_polishing(py::module_& module);
void bind_smoothing(py::module_& module);

}  // namespace leadline::bindings
