#include "leadline/observers.hpp"

#include <pybind11/stl.h>

#include "bindings.hpp"
#include "leadline/search.hpp"

namespace leadline::bindings {
namespace {

using observers::Channel;
using observers::Histogram;

const Channel& channel_of(const Histogram& histogram, std::int64_t index) {
    require(index >= 0 && index < static_cast<std::int64_t>(histogram.channels.size()), "Histogram", "no such channel",
            std::to_string(index));
    return histogram.channels[static_cast<std::size_t>(index)];
}

template <class T, class Value>
py::array_t<T> each(const Histogram& histogram, Value&& value) {
    py::array_t<T> out(static_cast<py::ssize_t>(histogram.channels.size()));
    T* to = out.mutable_data();
    for (const Channel& channel : histogram.channels) *to++ = value(channel);
    return out;
}

// The nonempty buckets as columns: channel, sign (0 positive, 1 negative), key, count, first, second.
py::array_t<std::uint64_t> buckets(const Histogram& histogram) {
    std::vector<std::uint64_t> rows;
    for (std::size_t c = 0; c < histogram.channels.size(); ++c)
        for (std::uint64_t sign = 0; sign < 2; ++sign) {
            const observers::Side& side = histogram.channels[c].sides[sign];
            for (std::size_t i = 0; i < side.buckets.size(); ++i)
                if (const auto& b = side.buckets[i]; b.count)
                    rows.insert(rows.end(), {c, sign, static_cast<std::uint64_t>(side.begin) + i, b.count, b.first,
                                             b.second});
        }
    return py::array_t<std::uint64_t>({static_cast<py::ssize_t>(rows.size() / 6), py::ssize_t{6}}, rows.data());
}

Histogram from_arrays(const Array<std::uint64_t>& count, const Array<std::uint64_t>& zeros, const Array<float>& lo,
                      const Array<float>& hi, const Array<std::uint64_t>& rows) {
    Histogram histogram(count.size());
    const auto counts = read(count), zero = read(zeros), all = read(rows);
    const auto low = read(lo), high = read(hi);
    require(zero.size() == counts.size() && low.size() == counts.size() && high.size() == counts.size() &&
                all.size() % 6 == 0,
            "Histogram.from_arrays", "count, zeros, lo and hi must have one size, buckets six columns",
            std::to_string(counts.size()) + " channels");
    for (std::size_t c = 0; c < counts.size(); ++c) {
        Channel& channel = histogram.channels[c];
        channel.count = counts[c], channel.zeros = zero[c], channel.lo = low[c], channel.hi = high[c];
    }
    for (std::size_t i = 0; i < all.size(); i += 6) {
        require(all[i] < counts.size() && all[i + 1] < 2 && all[i + 2] > 0 && all[i + 2] < observers::key_count,
                "Histogram.from_arrays", "a bucket must name a channel, a sign and a key of the histogram",
                std::to_string(all[i]) + ", " + std::to_string(all[i + 1]) + ", " + std::to_string(all[i + 2]));
        const auto key = static_cast<std::int32_t>(all[i + 2]);
        *histogram.channels[all[i]].sides[all[i + 1]].cover(key, key + 1) = {all[i + 3], all[i + 4], all[i + 5]};
    }
    return histogram;
}

}  // namespace

void bind_observers(py::module_& module) {
    py::class_<Histogram>(module, "Histogram", py::module_local())
        .def(py::init<std::int64_t>(), py::arg("channels"))
        .def(
            "update",
            [](Histogram& self, const Array<float>& x, const LayoutTuple& layout, int threads) {
                const auto in = read(x);
                return released([&] { return self.update(in, layout_of(layout), threads); });
            },
            py::arg("x").noconvert(), py::arg("layout"), py::arg("threads"))
        .def(
            "merge", [](Histogram& self, const Histogram& other) { released([&] { self.merge(other); }); },
            py::arg("other"))
        .def("lo", [](const Histogram& self) { return each<float>(self, [](const Channel& c) { return c.lo; }); })
        .def("hi", [](const Histogram& self) { return each<float>(self, [](const Channel& c) { return c.hi; }); })
        .def("count",
             [](const Histogram& self) { return each<std::uint64_t>(self, [](const Channel& c) { return c.count; }); })
        .def("zeros",
             [](const Histogram& self) { return each<std::uint64_t>(self, [](const Channel& c) { return c.zeros; }); })
        .def("sum", [](const Histogram& self) { return each<double>(self, [](const Channel& c) { return c.sum(); }); })
        .def("sum_sq",
             [](const Histogram& self) { return each<double>(self, [](const Channel& c) { return c.sum_sq(); }); })
        .def("buckets", &buckets)
        .def_static("from_arrays", &from_arrays, py::arg("count").noconvert(), py::arg("zeros").noconvert(),
                    py::arg("lo").noconvert(), py::arg("hi").noconvert(), py::arg("buckets").noconvert())
        .def(
            "search",
            [](const Histogram& self, const std::string& method, const affine::Scheme& scheme, double option,
               Array<float>& lo, Array<float>& hi, int threads) {
                const auto low = write(lo), high = write(hi);
                observers::Search search;
                using observers::Method;
                if (method == "percentile")
                    search.method = Method::percentile, search.percentile = option;
                else if (method == "mse")
                    search.method = Method::lp, search.p = option;
                else if (method == "sqnr")
                    search.method = Method::lp, search.gamma = option;
                else if (method == "entropy")
                    search.method = Method::entropy;
                else if (method == "octav")
                    search.method = Method::octav;
                else
                    require(method == "minmax", "search_range", "unknown method", method);
                released([&] { observers::search(self, scheme, search, low, high, threads); });
            },
            py::arg("method"), py::arg("scheme"), py::arg("option"), py::arg("lo").noconvert(),
            py::arg("hi").noconvert(), py::arg("threads"))
        .def(
            "cost",
            [](const Histogram& self, std::int64_t channel, const std::string& method, const affine::Scheme& scheme,
               float scale, std::int32_t zero_point, double p, double gamma) {
                const Channel& of = channel_of(self, channel);
                return released([&] {
                    const observers::Segments segments(of, p);
                    const affine::Grid grid{scale, zero_point};
                    return method == "entropy"
                               ? observers::entropy_cost(observers::Density(of, segments), grid, scheme)
                               : observers::lp_cost(segments, grid, scheme, gamma);
                });
            },
            py::arg("channel"), py::arg("method"), py::arg("scheme"), py::arg("scale"), py::arg("zero_point"),
            py::arg("p"), py::arg("gamma"));
}

}  // namespace leadline::bindings
