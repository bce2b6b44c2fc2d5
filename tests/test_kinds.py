"""Networks of many kinds under leadline's recipes: whole, and no worse than plain min-max elsewhere."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from kind_networks import KINDS, Net, network
from leadline import pipeline
from leadline.data import load_samples
from leadline.graph import Graph
from loadable import check

SEEN, JUDGED = range(12), range(100, 104)
"""Seeds of the samples that every quantiser calibrates on, and of those that it is judged on."""

LUCK = 3.0
"""dB that two ways to place grids differ by on so few samples."""

ENOUGH, LEAST = 25.0, 12.0
"""dB: what is enough whatever the other reaches, who leaves in float what he does not know (Einsum, GRU); and what any
quantised network has."""

FOUR_BITS = 6.02 * 4
"""dB that weights lose with four of their eight bits, where nothing makes up for it."""


def worst(wanted: list[dict[str, Any]], got: list[dict[str, Any]]) -> float:
    """SQNR in dB of the output that has the lowest."""
    found = []
    for name in wanted[0]:
        exact, rough = (np.stack([one[name] for one in side]).astype(np.float64) for side in (wanted, got))
        signal, noise = np.square(exact).sum(), np.square(exact - rough).sum()
        found.append(10 * np.log10(signal / max(noise, 1e-12 * signal)))
    return float(min(found))


def outputs(model: onnx.ModelProto, net: Net) -> list[dict[str, Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return [dict(zip(names, session.run(names, net.feed(seed)), strict=True)) for seed in JUDGED]


@functools.cache
def floor(name: str) -> float:
    """What onnxruntime's own static quantisation gives: observed extremes, weights per channel, the same samples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    net = network(name)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([net.feed(seed) for seed in SEEN])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = Path(folder) / "float.onnx", Path(folder) / "plain.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(net.model()), before)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(before, after, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **types)
        return worst(outputs(net.model(), net), outputs(onnx.load(after), net))


@pytest.mark.parametrize("recipe", ["minmax-w8a8", "w8a8", "w8a16", "w4a8"])
@pytest.mark.parametrize("name", KINDS)
def test_networks_of_every_kind(name, recipe, tmp_path):
    net = network(name)
    graph = Graph.from_model(net.model())
    held_out = load_samples([net.feed(seed) for seed in range(50, 54)], graph.inputs)
    q = pipeline.quantize(graph, recipe, [net.feed(seed) for seed in SEEN], held_out=held_out, threads=1)
    plain = floor(name)
    reached = worst(outputs(net.model(), net), outputs(q.to_qdq(), net))
    assert reached > min(plain - LUCK, ENOUGH) - (FOUR_BITS if recipe == "w4a8" else 0)
    assert reached > LEAST
    found = q.verify(threads=1)
    assert min(score.sqnr for score in found.outputs) > LEAST and not q.limits
    q.save(tmp_path)
    files = sorted(tmp_path.glob("*.onnx"))
    assert [file.name for file in files] == ["model.encodings.onnx", "model.fp32.onnx", "model.qdq.onnx"]
    for file in files:
        check(file)
