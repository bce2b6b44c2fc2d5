"""bench_rounding's peer: aimet-onnx's AdaRound of one layer, in an environment that has aimet-onnx and not leadline.

    PYTHON benchmarks/rounding_aimet.py FOLDER --threads 2 --iterations 10000

FOLDER holds layer.npz: weight and bias (as in Gemm with transB, or Conv), attrs (ONNX's, as JSON) and inputs (pictures
along axis 0). result.npz is added: scale and codes, output channels first; the seconds that apply_adaround took as a
whole, by the clock (`wall`) and of the processor; `setup`, seconds before it (the simulation and its encodings); and
`unsettled`, the share of weights that aimet-onnx left between two codes: its quantiser rounds those to the nearer one
whenever the network runs, and so do we.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from aimet_onnx import QuantizationSimModel, int4, int8
from aimet_onnx.adaround.adaround_weight import Adaround
from numpy.typing import NDArray

SETTLED = 1e-3
"""A stored weight so many steps from an integer is one: a quotient of float32 values is no nearer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=None, help="default: aimet-onnx's own")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    with np.load(options.folder / "layer.npz") as file:
        model = alone(file)
        inputs = [{"x": picture[None]} for picture in file["inputs"]]
    start = time.perf_counter()
    sim = simulation(model, inputs, options.threads)
    setup = time.perf_counter() - start

    chosen = {} if options.iterations is None else {"num_iterations": options.iterations}
    wall, processor = time.perf_counter(), time.process_time()
    Adaround.apply_adaround(sim, inputs, **chosen)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor

    scale, codes, unsettled = read_back(sim)
    figures = {"wall": wall, "processor": processor, "setup": setup, "unsettled": unsettled}
    np.savez(options.folder / "result.npz", scale=scale, codes=codes, **figures)


def alone(layer: Any) -> onnx.ModelProto:
    """The layer as a network of its own, without the activation behind it; a linear one as PyTorch exports it."""
    helper, array, conv = onnx.helper, layer["weight"], layer["weight"].ndim == 4
    weights = {"w": array if conv else np.ascontiguousarray(array.T)}
    if "bias" in layer:
        weights["b"] = layer["bias"]
    if conv:
        nodes = [helper.make_node("Conv", ["x", *weights], ["y"], "layer", **json.loads(str(layer["attrs"])))]
    elif "b" in weights:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"], "layer"), helper.make_node("Add", ["b", "xw"], ["y"])]
    else:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, *layer["inputs"].shape[1:]))
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "layer", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def simulation(model: onnx.ModelProto, inputs: list[dict[str, Any]], threads: int) -> QuantizationSimModel:
    """The layer with 4-bit weights as aimet-onnx quantises them by default, one symmetric scale a channel.

    Activations stay float, as everybody's do here. apply_adaround means to switch their quantisers off itself, but in
    2.42 `with disable_quantizers(...) and TemporaryDirectory()` enters only the second.
    """
    sim = QuantizationSimModel(
        model, param_type=int4, activation_type=int8, session_options_kwargs={"intra_op_num_threads": threads}
    )
    for name in sim.activation_names:
        sim.qc_quantize_op_dict[name].enabled = False
    sim.compute_encodings(inputs[:1])
    return sim


def read_back(sim: QuantizationSimModel) -> tuple[NDArray[np.float32], NDArray[np.int8], float]:
    """Scale per channel, codes and the unsettled share of the layer's weight "w"."""
    quantizer = sim.qc_quantize_op_dict["w"]
    if not quantizer.is_encoding_frozen():
        raise SystemExit("aimet-onnx passed the layer over: it froze no encodings")
    found = quantizer.get_encodings()
    tensor = next(t for t in sim.model.model.graph.initializer if t.name == "w")
    weight = onnx.numpy_helper.to_array(tensor)
    weight = np.ascontiguousarray(np.moveaxis(weight, quantizer.quant_info.channelAxis, 0))
    scale = np.array([e.delta for e in found], np.float32)
    if len(scale) != len(weight) or any(e.offset != -8 for e in found):
        raise SystemExit(f"expected {len(weight)} symmetric 4-bit scales, got {len(scale)} of offset {found[0].offset}")
    steps = weight / scale.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
    codes = np.rint(steps)
    if codes.min() < -8 or codes.max() > 7:
        raise SystemExit(f"aimet-onnx's codes leave 4 bits: {codes.min()}..{codes.max()}")
    return scale, codes.astype(np.int8), float((np.abs(steps - codes) > SETTLED).mean())


if __name__ == "__main__":
    main()
