"""Other quantisers of ONNX networks by their documented routes, where leadline need not be installed.

    PYTHON benchmarks/peers.py float FOLDER --threads 2               # no quantiser: float passes, timed
    PYTHON benchmarks/peers.py onnxruntime-MinMax FOLDER              # or another of PEERS
    PYTHON benchmarks/peers.py nncf FOLDER

FOLDER holds fixed.onnx (static shapes) and calibration.npz (one array of N samples per input); artefact.onnx is added.
All is 8 bits: INT8 weights per channel and UINT8 activations per tensor of onnxruntime, NNCF's own defaults of NNCF.
`nncf-transformer` is NNCF told that the network is one, which adds SmoothQuant. aimet-onnx has accuracy_aimet.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METHODS = ("MinMax", "Entropy", "Percentile")
PEERS = (*(f"onnxruntime-{method}" for method in METHODS), "nncf", "nncf-transformer")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("peer", choices=("float", *PEERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2, help="of the float passes; peers take what they see")
    options = parser.parse_args()
    folder, artefact = options.folder, options.folder / "artefact.onnx"
    if options.peer == "float":
        print(json.dumps(float_passes(folder / "fixed.onnx", feeds(folder), options.threads)))
    elif options.peer.startswith("nncf"):
        nncf(folder / "fixed.onnx", artefact, feeds(folder), transformer=options.peer == "nncf-transformer")
    else:
        method = options.peer.removeprefix("onnxruntime-")
        onnxruntime_static(folder / "fixed.onnx", folder / "prepared.onnx", artefact, method, feeds(folder))


def feeds(folder: Path) -> list[dict[str, Any]]:
    import numpy as np

    with np.load(folder / "calibration.npz") as file:
        arrays = dict(file)
    return [{name: array[i] for name, array in arrays.items()} for i in range(len(next(iter(arrays.values()))))]


def float_passes(network: Path, samples: list[dict[str, Any]], threads: int) -> dict[str, float]:
    """One pass over each sample, as onnxruntime runs the file by default: seconds, and the process's peak in MB."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
    session.run(None, samples[0])
    wall, processor = time.perf_counter(), time.process_time()
    for sample in samples:
        session.run(None, sample)
    seconds = {"processor": time.process_time() - processor, "wall": time.perf_counter() - wall}
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


def nncf(network: Path, artefact: Path, samples: list[dict[str, Any]], *, transformer: bool) -> None:
    """NNCF's post-training quantisation as its guide shows it."""
    import nncf as library
    import onnx

    kind = library.ModelType.TRANSFORMER if transformer else None
    data = library.Dataset(samples)
    quantised = library.quantize(onnx.load(network), data, model_type=kind, subset_size=len(samples))
    onnx.save(quantised, artefact)


def reader(samples: Iterable[dict[str, Any]]) -> Any:
    """A CalibrationDataReader over samples."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    return Reader()


def prepare(fixed: Path, prepared: Path) -> None:
    """onnxruntime's quant_pre_process, once: folds BatchNorm, infers shapes."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not prepared.exists():
        with contextlib.redirect_stdout(io.StringIO()):
            quant_pre_process(str(fixed), str(prepared), skip_symbolic_shape=True)


def onnxruntime_static(
    fixed: Path, prepared: Path, artefact: Path, method: str, samples: Iterable[dict[str, Any]]
) -> None:
    """onnxruntime's documented route: `prepare`, then quantize_static."""
    from onnxruntime import quantization

    prepare(fixed, prepared)
    with contextlib.redirect_stdout(io.StringIO()):
        quantization.quantize_static(
            str(prepared),
            str(artefact),
            reader(samples),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            calibrate_method=getattr(quantization.CalibrationMethod, method),
        )


if __name__ == "__main__":
    main()
