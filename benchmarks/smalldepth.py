"""SmallDepth: network A's frozen DINOv2 ViT-S encoder with a DPT head of our own, as one clean ONNX.

    python benchmarks/smalldepth.py smalldepth.onnx

The encoder comes out of its wheel (tests/testbed.py) and is in no repository of ours; the head was trained by
`train_tinydepth.py small` on rendered scenes. It is not Depth Anything: it is our own head on DINOv2 features, for
benchmarks that need a depth network of full size with DINOv2's outlier channel.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx

from leadline.depth.metrics import FAR
from leadline.depth.networks import PREPROCESS
from leadline.files import replacing
from leadline.graph import Graph, Session

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import testbed

HERE = Path(__file__).resolve().parent
HEAD = HERE / "smalldepth_head.onnx"
BLOCKS = (2, 5, 8, 11)
INPUTS = tuple(f"tokens.{block}" for block in BLOCKS)
TAPS = tuple(f"backbone.encoder.layer.{block}.add_1" for block in BLOCKS)
"""Outputs of the blocks that Depth Anything's ViT-S taps; (1, 257, 384) each, class token first."""


def encoder() -> onnx.ModelProto:
    """Network A up to its last block, with the four taps as outputs."""
    model = Graph.load(testbed.network("A")).to_model()
    return onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(["input_image"], list(TAPS))


def assemble() -> onnx.ModelProto:
    """Encoder and head in one: (1, 3, 224, 224) pictures to (1, 1, 224, 224) inverse depth in 1/m."""
    head = Graph.load(HEAD).to_model()
    head = onnx.compose.add_prefix(head, "head.", rename_outputs=False)
    body = encoder()
    head.ir_version = body.ir_version = max(head.ir_version, body.ir_version)
    model = onnx.compose.merge_models(body, head, io_map=[(t, f"head.{i}") for t, i in zip(TAPS, INPUTS, strict=True)])
    opsets = {entry.domain: entry.version for entry in model.opset_import}  # merged, each is there twice
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in opsets.items())
    _cut(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _cut(model: onnx.ModelProto) -> None:
    """Clip the logarithm at 80 m, as the shipped networks do: the sky's would stretch every grid to -69."""
    exp = model.graph.node[-1]
    assert exp.op_type == "Exp"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(-np.log(FAR)), "head.cut"))
    clip = onnx.helper.make_node("Clip", [exp.input[0], "head.cut"], ["head.logarithm"], "head.clip")
    exp.input[0] = "head.logarithm"
    model.graph.node.insert(len(model.graph.node) - 1, clip)


def features(data: tuple[np.ndarray, np.ndarray], cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4, 257, 384) float16 tokens of pictures (N, 224, 224, 3), computed once; with their inverse depth."""
    from rich.progress import track

    rgb, inverse = data
    if not cache.exists():
        mean, std = (np.asarray(PREPROCESS[key], np.float32) for key in ("mean", "std"))
        with replacing(cache) as partial:
            done = np.lib.format.open_memmap(partial, "w+", np.float16, (len(rgb), len(TAPS), 257, 384))
            with Session(encoder()) as session:
                for i in track(range(len(rgb)), "features"):
                    x = ((rgb[i] / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
                    found = session.run({"input_image": np.ascontiguousarray(x, np.float32)})
                    done[i] = np.concatenate([found[tap] for tap in TAPS])
            done.flush()
    return np.load(cache, mmap_mode="r"), inverse


if __name__ == "__main__":
    with replacing(sys.argv[1]) as partial:
        onnx.save(assemble(), str(partial))
    print("wrote", sys.argv[1])
