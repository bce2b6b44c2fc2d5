"""leadline.targets.litert.read: what is in a .tflite file, against the interpreter's own answers and known bytes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'leadline[tflite]'")

import small_tflite
from leadline.targets.litert import read as tflite_read
from leadline.targets.litert.read import read
from leadline.types import InputError


def quantised(source: bytes, recipe: list[dict[str, Any]]) -> bytes:
    from ai_edge_quantizer import quantizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tool = quantizer.Quantizer(source, recipe)
        content = read(source).main
        shape = content.tensors[content.inputs[0]].shape
        sample = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        seen = tool.calibrate({"serving_default": [{content.tensors[content.inputs[0]].name: sample}]})
        return bytes(tool.quantize(seen, enable_progress_report=False).quantized_model)


def test_float_network() -> None:
    model = read(small_tflite.decoder())
    graph = model.main
    assert [operator.type for operator in graph.operators][:3] == ["CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D"]
    assert graph.operators[0].options["strideH"] == 2
    assert [graph.tensors[index].name for index in graph.inputs] == ["picture"]
    assert dict(model.signatures[0].outputs) == {"depth": graph.outputs[0]}
    weight = next(tensor for tensor in graph.tensors if tensor.name == "stem/weight")
    assert weight.constant and weight.array.shape == (8, 3, 3, 3) and weight.stored == 8 * 27 * 4
    assert weight.grid is None and np.array_equal(weight.values, weight.array)
    stem = graph.producers()[graph.operators[0].outputs[0]]
    assert stem is graph.operators[0] and len(graph.readers()[stem.outputs[0]]) == 2


def test_grids_are_the_interpreters() -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import recipe

    content = quantised(small_tflite.decoder(), recipe.static_wi8_ai8())
    known = {entry["index"]: entry for entry in Interpreter(model_content=content).get_tensor_details()}
    tensors = read(content).main.tensors
    assert any(tensor.axis == 3 for tensor in tensors)  # the depthwise weight
    for tensor in tensors:
        entry = known[tensor.index]["quantization_parameters"]
        if tensor.scale is None:
            assert entry["scales"].size == 0
            continue
        assert np.array_equal(tensor.scale.reshape(-1), entry["scales"])
        assert np.array_equal(tensor.zero_point.reshape(-1), entry["zero_points"])
        if tensor.grid.scheme.granularity == "axis":
            assert tensor.grid.scheme.axis == entry["quantized_dimension"]


def test_four_bits_in_blocks() -> None:
    from ai_edge_quantizer import qtyping, recipe_manager

    manager = recipe_manager.RecipeManager()
    blocks = qtyping.QuantGranularity.BLOCKWISE_128
    manager.add_dynamic_config(".*", qtyping.TFLOperationName.FULLY_CONNECTED, 4, granularity=blocks)
    source = small_tflite.transformer()
    content = quantised(source, manager.get_quantization_recipe())
    weights = {tensor.name: tensor for tensor in read(source).main.tensors if tensor.name.endswith("/weight")}
    found = {tensor.name: tensor for tensor in read(content).main.tensors if tensor.name in weights}
    assert len(found) == 6
    for name, tensor in found.items():
        assert (
            tensor.dtype == "int4"
            and tensor.block_size == 128
            and tensor.scale.shape == (tensor.shape[0], tensor.shape[1] // 128)
        )
        assert tensor.stored == tensor.size // 2 and np.abs(tensor.array).max() <= 8
        step = np.repeat(tensor.scale, 128, axis=1)
        assert (np.abs(tensor.values - weights[name].values) <= 0.501 * step + 1e-3).all()
        assert tensor.grid.scheme.granularity == "block"


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^\[read\] '.*none.tflite' must be a file that can be read\. Received No such"
    ):
        read(tmp_path / "none.tflite")
    foreign = tmp_path / "picture.tflite"
    foreign.write_bytes(b"\x89PNG\r\n\x1a\n" * 8)
    with pytest.raises(
        InputError, match=r"must be a \.tflite file \(TFL3 at byte 4\)\. Received a file that begins with"
    ):
        read(foreign)
    with pytest.raises(InputError, match="Received nothing"):
        read(b"")


def test_truncated_and_damaged_files_are_refused_in_one_sentence() -> None:
    whole = small_tflite.decoder()
    random = np.random.default_rng(0)
    for length in (9, 100, 1000, len(whole) // 2, len(whole) - 1):
        with pytest.raises(
            InputError, match=r"^\[read\] the bytes must be a whole \.tflite file\. Received \d+ bytes"
        ) as caught:
            read(whole[:length])
        assert "\n" not in str(caught.value)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in random.integers(8, len(whole), 4):
            damaged[position] = random.integers(256)
        try:
            model = read(bytes(damaged))
        except InputError:
            continue
        assert model.subgraphs


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(InputError, match=r"needs ai-edge-litert: pip install 'leadline\[tflite\]'"):
        tflite_read.read(b"\x1c\x00\x00\x00TFL3" + bytes(100))
