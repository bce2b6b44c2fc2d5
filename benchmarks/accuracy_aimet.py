"""rounding_accuracy's peer: aimet-onnx on a whole network, in an environment that has aimet-onnx and not leadline.

    PYTHON benchmarks/accuracy_aimet.py FOLDER --bits 4 --threads 1 --iterations 10000

FOLDER holds prepared.onnx (static shapes, BatchNorm folded) and calibration.npz (one array of N samples per input).
artefact.onnx is added, quantize-dequantize nodes as aimet-onnx exports them, and seconds.json: those of AdaRound and of
everything. All is aimet-onnx's default but the bits: min-max ranges, weights per channel, AdaRound of every layer.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from aimet_onnx import QuantizationSimModel, int4, int8
from aimet_onnx.adaround.adaround_weight import Adaround


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, choices=(4, 8), required=True, help="of weights; activations have 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, help="0: nearest rounding; default: aimet-onnx's own 10000")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    with np.load(options.folder / "calibration.npz") as file:
        arrays = dict(file)
    inputs = [{name: array[i] for name, array in arrays.items()} for i in range(len(next(iter(arrays.values()))))]
    start = time.perf_counter()
    sim = QuantizationSimModel(
        onnx.load(options.folder / "prepared.onnx"),
        param_type=int4 if options.bits == 4 else int8,
        activation_type=int8,
        session_options_kwargs={"intra_op_num_threads": options.threads},
    )
    begun = time.perf_counter()
    if options.iterations != 0:
        chosen = {} if options.iterations is None else {"num_iterations": options.iterations}
        # apply_adaround means to switch these off itself, but in 2.42 its `with a and b` enters only b.
        active = [name for name in sim.activation_names if sim.qc_quantize_op_dict[name].enabled]
        for name in active:
            sim.qc_quantize_op_dict[name].enabled = False
        Adaround.apply_adaround(sim, inputs, **chosen)
        for name in active:
            sim.qc_quantize_op_dict[name].enabled = True
    rounded = time.perf_counter() - begun
    sim.compute_encodings(inputs)
    onnx.save(sim.to_onnx_qdq(), options.folder / "artefact.onnx")
    seconds = {"rounding": rounded, "all": time.perf_counter() - start}
    (options.folder / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
