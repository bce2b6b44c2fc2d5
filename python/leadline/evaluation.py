"""What a depth network's outputs are worth: frames with known depth in, metrics out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leadline.data import Preprocess
from leadline.depth import DepthScores, DepthSimilarity, Frame, align, boundary_f1, collapsed, score, similarity
from leadline.depth.metrics import FAR, Alignment, valid
from leadline.depth.scenes import flow
from leadline.depth.temporal import alignment_error, flicker, warped_change
from leadline.graph import Graph, Session
from leadline.progress import Quiet
from leadline.types import FloatArray, refuse

if TYPE_CHECKING:
    import onnx

    from leadline.progress import Progress


@dataclass(frozen=True)
class Footage:
    """Frames that a depth network is judged by.

    Attributes
    ----------
    frames : sequence of Frame
        Pictures of the network's input size, with depth in metres (infinite or 0 where unknown) and cameras.
    video : bool
        The frames follow one another: temporal metrics are taken, and one alignment serves all of them.
    inverse : bool
        The network gives inverse depth.
    alignment : {"none", "median", "scale-shift"}
        See ``leadline.depth.align``.
    far : float
        Depth beyond is not evaluated, in metres.
    """

    frames: Sequence[Frame]
    video: bool = False
    inverse: bool = True
    alignment: Alignment = "none"
    far: float = FAR

    @property
    def truth(self) -> FloatArray:
        return np.stack([frame.depth for frame in self.frames])


@dataclass(frozen=True)
class Judgement:
    """A network on some footage.

    Attributes
    ----------
    scores : DepthScores
        Against the truth.
    sharpness : float
        Boundary F1 against the truth.
    agreement : DepthSimilarity or None
        With the float network's output; None for itself.
    temporal : dict of name to (frames - 1,) array
        For video, in percent: "alignment_error", "warped_change" and "flicker" (the latter beside a float network).
    collapse : list of str
        Why the output has collapsed; empty where it has not.
    output : (frames, height, width) float32
        As the network gave it.
    depth : (frames, height, width) float32
        Aligned, in metres.
    """

    scores: DepthScores
    sharpness: float
    agreement: DepthSimilarity | None = None
    temporal: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    collapse: list[str] = field(default_factory=list)
    output: FloatArray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32), repr=False)
    depth: FloatArray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Figures alone, ready for JSON."""
        return {
            "scores": self.scores.to_dict(),
            "sharpness": self.sharpness,
            "agreement": self.agreement.to_dict() if self.agreement else None,
            "temporal": {name: [round(float(v), 5) for v in values] for name, values in self.temporal.items()},
            "collapse": self.collapse,
        }


def feeds(frames: Sequence[Frame], preprocess: Preprocess) -> list[NDArray[Any]]:
    """Frames as a network's inputs."""
    from PIL import Image

    return [preprocess(Image.fromarray(frame.rgb)) for frame in frames]


def predict(
    model: Graph | onnx.ModelProto,
    frames: Sequence[Frame],
    preprocess: Preprocess,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> FloatArray:
    """A network's dense output for each frame, (frames, height, width) float32, run operator by operator as written.

    Raises InputError where the network has not one input, or not one dense output of the frames' size.
    """
    with Session(model, optimize=False, threads=threads) as session:
        if len(session.inputs) != 1 or len(session.outputs) != 1:
            received = f"{len(session.inputs)} inputs and {len(session.outputs)} outputs"
            raise refuse("evaluation.predict", "a depth network must have one input and one output", received)
        ((name, _, _),) = session.inputs
        outputs = []
        for feed in (progress or Quiet()).over(feeds(frames, preprocess), "depth", len(frames)):
            (output,) = session.run({name: feed}).values()
            outputs.append(np.squeeze(np.asarray(output, np.float32)))
    size = frames[0].depth.shape
    if outputs[0].shape != size:
        raise refuse("evaluation.predict", f"the output must be one plane of {size}, as the frames", outputs[0].shape)
    return np.stack(outputs)


def judge(output: NDArray[Any], footage: Footage, reference: Judgement | None = None) -> Judgement:
    """All metrics of a network's output on some footage; `reference` is the float network on it. Beside that, what is
    NaN or infinite is a collapse, and counts as 0 in the metrics."""
    truth, frames = footage.truth, footage.frames
    raw = output
    if reference is not None:
        output = np.where(np.isfinite(raw), raw, 0)
    depth = align(output, truth, footage.alignment, inverse=footage.inverse, far=footage.far, together=footage.video)
    scores = score(depth, truth, far=footage.far)
    known_depth = np.where(valid(truth, far=footage.far), depth, 0)
    temporal = (
        _temporal(known_depth, output, frames, None if reference is None else reference.output) if footage.video else {}
    )
    return Judgement(
        scores,
        boundary_f1(depth, np.where(truth > 0, truth, np.inf)),
        None if reference is None else similarity(output, reference.output),
        temporal,
        [] if reference is None else collapsed(raw, reference.output, scores, reference.scores),
        np.asarray(output, np.float32),
        depth.astype(np.float32),
    )


def _temporal(
    depth: NDArray[Any], output: NDArray[Any], frames: Sequence[Frame], reference: NDArray[Any] | None
) -> dict[str, NDArray[np.float64]]:
    intrinsics, poses = (np.stack([getattr(f.camera, key) for f in frames]) for key in ("intrinsics", "pose"))
    moves = [flow(a, b) for a, b in pairwise(frames)]
    profiles = {
        "alignment_error": alignment_error(depth, intrinsics, poses),
        "warped_change": warped_change(depth, [move for move, _ in moves], [seen for _, seen in moves]),
    }
    if reference is not None:
        profiles["flicker"] = flicker(output, reference)
    return profiles
