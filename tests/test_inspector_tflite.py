"""What the inspector says of .tflite files, counted by hand and by the interpreter."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from leadline.inspector import compare, inspect
from leadline.targets.litert.read import read
from leadline.types import InputError
from test_cli import spawn

small_tflite = pytest.importorskip("small_tflite", reason="needs ai-edge-litert: pip install 'leadline[tflite]'")
pytest.importorskip("ai_edge_quantizer", reason="needs ai-edge-quantizer: pip install 'leadline[tflite]'")


def quantised(content: bytes, name: str, folder: Path, **ranges: tuple[float, float]) -> Path:
    """A recipe of ai-edge-quantizer's own; activations of static ones reach from -4 to 4 unless `ranges` says more."""
    from ai_edge_quantizer import quantizer, recipe

    (folder / "float.tflite").write_bytes(content)
    made = quantizer.Quantizer(str(folder / "float.tflite"))
    made.load_quantization_recipe(getattr(recipe, name)())
    every = {tensor.name: (-4.0, 4.0) for tensor in read(content).main.tensors if not tensor.constant} | ranges
    found = {key: {"min": np.float32([[[low]]]), "max": np.float32([[[high]]])} for key, (low, high) in every.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of its interpreter, about memory
        result = made.quantize(found if name.startswith("static") else None)
    (folder / f"{name}.tflite").write_bytes(result.quantized_model)
    return folder / f"{name}.tflite"


def test_a_float_network_is_all_uncovered(tmp_path: Path) -> None:
    (tmp_path / "f.tflite").write_bytes(small_tflite.decoder())
    found = inspect(tmp_path / "f.tflite")
    assert (found.kind, found.tensors, found.quantized, found.listed, found.saving) == ("TFLite", 19, 0, 21, 0.0)
    assert (found.parameters, found.activations) == (10, 9)
    assert found.inputs == {"picture": "float32 1x16x16x3"} and found.outputs == {"depth": "float32 1x16x16x1"}
    assert found.float_operators["CONV_2D"] == ("stem", "point", "depth") and found.dynamic_operators == {}
    assert sum(map(len, found.float_operators.values())) == 8


def test_dynamic_recipes_leave_activations_in_float(tmp_path: Path) -> None:
    found = inspect(quantised(small_tflite.transformer(), "dynamic_wi8_afp32", tmp_path))
    assert (found.parameters_quantized, found.activations_quantized) == (6, 0)
    assert found.grids == {"parameter int8 per channel": 6}
    assert (
        found.dynamic_operators.keys() == {"FULLY_CONNECTED"} and len(found.dynamic_operators["FULLY_CONNECTED"]) == 6
    )
    assert "FULLY_CONNECTED" not in found.float_operators and "GELU" in found.float_operators
    linear, features = 4 * 128 * 128 + 2 * 128 * 256, 5 * 128 + 256
    floats = 4 * (5 * 128 + 256 + 1)  # biases and the factor
    assert found.weight_bytes == linear + 12 * features + floats
    assert found.weight_bytes_float == 4 * linear + floats
    assert 70 < found.saving < 75  # as the whole file shrinks, whose float form is inspected beside it
    plain = inspect(tmp_path / "float.tflite")
    assert found.bytes < 0.3 * plain.bytes and plain.tensors == found.tensors


def test_weight_only_layers_compute_in_float(tmp_path: Path) -> None:
    found = inspect(quantised(small_tflite.transformer(), "weight_only_wi8_afp32", tmp_path))
    assert found.parameters_quantized == 6 and len(found.float_operators["FULLY_CONNECTED"]) == 6
    assert found.dynamic_operators == {}
    assert (found.tensors, found.listed) == (33, 40)  # six dequantised weights are no tensors of the network


def test_static_recipes_cover_everything(tmp_path: Path) -> None:
    found = inspect(quantised(small_tflite.transformer(), "static_wi8_ai8", tmp_path))
    assert (found.tensors, found.quantized, found.uncovered, found.float_operators) == (33, 33, (), {})
    assert found.grids["activation int8 per tensor"] == 20 and found.grids["parameter int32 per channel"] == 6
    assert found.inputs == {"tokens": "int8 1x8x128"}


def test_an_interpreter_counts_the_same_tensors(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    file = quantised(small_tflite.decoder(), "dynamic_wi8_afp32", tmp_path)
    details = Interpreter(str(file)).get_tensor_details()
    found = inspect(file)
    assert found.quantized == sum(detail["dtype"] == np.int8 for detail in details)
    assert found.listed is not None and found.listed <= len(details)  # it adds scratch tensors of its kernels


def test_scores_beside_boxes_keep_two_codes(tmp_path: Path) -> None:
    """Boxes of 0 to 640 and Sigmoid scores on one grid of 255 steps: each step is 2.5."""
    builder = small_tflite.Builder()
    boxes, logits = builder.tensor("boxes", (1, 4, 8)), builder.tensor("logits", (1, 2, 8))
    scores = builder.op("LOGISTIC", [logits], "scores", (1, 2, 8))
    both = builder.op("CONCATENATION", [boxes, scores], "both", (1, 6, 8), family="Concatenation", axis=1)
    content = builder.finish([boxes, logits], [both])
    ranges = {"boxes": (0, 640), "logits": (-8, 8), "scores": (0, 1), "both": (0, 640)}
    file = quantised(content, "static_wi8_ai8", tmp_path, **ranges)
    (finding,) = inspect(file).suspicious.values()
    assert "keeps 1 of 256 codes" in finding and "(0 to 0.996" in finding and "step is 2.51" in finding


def test_two_recipes_differ_where_they_should(tmp_path: Path) -> None:
    dynamic = quantised(small_tflite.transformer(), "dynamic_wi8_afp32", tmp_path)
    static = quantised(small_tflite.transformer(), "static_wi8_ai8", tmp_path)
    found = compare(dynamic, static)
    assert (found.equal_grids, found.equal_codes, found.grids, found.codes) == (6, 6, {}, {})
    assert found.only_first == {} and len(found.only_second) == 27 and not found.same
    assert found.only_second["active"] == "int8 per tensor, in float in the other file"


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_tflite.decoder()
    for size in (8, 100, len(whole) // 2):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"must be a whole \.tflite file"):
            inspect(tmp_path / "cut")
    (tmp_path / "text.tflite").write_text("no such thing at all")
    done = spawn("inspect", tmp_path / "text.tflite")
    assert done.returncode == 2 and "must be a .tflite file" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "whole").write_bytes(whole)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(InputError, match=r"pip install 'leadline\[tflite\]'"):
        inspect(tmp_path / "whole")
