"""ONNX's own node tests through `Graph.load`: whether the Graph computes what onnxruntime makes of the file.

python tests/conformance.py            the table that docs/conformance.md holds
python tests/conformance.py Resize     one operator's cases that are not equal, each with its reason
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from leadline.graph import Graph, Session
from leadline.types import InputError

# (relative, absolute) distance that the rounding of the file's own type allows; a Graph computes in float32.
TOLERANCES = {"float64": (1e-3, 1e-5), "float32": (1e-3, 1e-5), "float16": (1e-2, 5e-3)}

# Why a file may be refused: what tables call it, and what the error says. In this order.
REASONS = {
    "sequences or optional values at the ends, or of unknown length": "sequence|an optional",
    "strings": "strings in|String|TfIdf",
    "random, or dropping at random": "same output twice",
    "outside ONNX itself (ai.onnx.ml)": "must be standard ONNX",
    "already quantised, or types of less than 16 and 8 bits": "already quantised|of 16 bits or more",
    "control flow that the data decides": "control flow",
    "shapes that the data decides": "shapes of|axis of a CumProd",
    "opset before 7": "must use ONNX opset",
    "no form in opset 21": "must be in opset 21|take their types in opset 21",
    "no weight may be infinite or NaN": "must be finite",
}

Case = tuple[str, onnx.ModelProto, dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """`kind`: equal, refused, wrong, traceback, or unable where onnxruntime itself does not run the file."""

    name: str
    kind: str
    reason: str = ""


def cases(op_type: str | None = None) -> Iterator[Case]:
    """(name, model, feed) of each node test that the installed onnx generates."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about the values that the tests want
        found = collect_testcases(op_type)
    for case in sorted(found, key=lambda case: case.name):
        names = [value.name for value in case.model.graph.input]
        yield case.name, case.model, dict(zip(names, map(_plain, case.data_sets[0][0]), strict=False))


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    return value if value is None or isinstance(value, list) else np.asarray(value)


def outcome(name: str, model: onnx.ModelProto, feed: dict[str, Any]) -> Outcome:
    """What becomes of one case."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        expected = session.run(None, feed)
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        return Outcome(name, "unable", str(error))
    try:
        graph = Graph.from_model(model, feed)
        with Session(graph.to_model(), optimize=False) as run:
            got = run.run({value.name: feed[value.name].astype(value.dtype) for value in graph.inputs})
    except InputError as error:
        return Outcome(name, "refused", str(error))
    except Exception as error:
        return Outcome(name, "traceback", f"{type(error).__name__}: {error}")
    for value, want in zip(model.graph.output, expected, strict=True):
        reason = difference(want, got[value.name]) if value.name in got else "not there"
        if reason:
            return Outcome(name, "wrong", f"output '{value.name}': {reason}")
    return Outcome(name, "equal")


def difference(want: np.ndarray, got: np.ndarray) -> str:
    """Of what onnxruntime gives for the file and what the Graph gives; empty where there is none."""
    if want.shape != got.shape:
        return f"shape {got.shape} for {want.shape}"
    if want.dtype.name not in TOLERANCES:
        same = want.dtype == got.dtype and np.array_equal(want, got)
        return "" if same else f"other values, or {got.dtype} for {want.dtype}"
    relative, absolute = TOLERANCES[want.dtype.name]
    # Masks are minus infinity here and the lowest float there.
    most = np.finfo(np.float32).max
    x, y = (np.nan_to_num(a.astype(np.float64), nan=np.nan, posinf=most, neginf=-most) for a in (want, got))
    return "" if np.allclose(y, x, relative, absolute, equal_nan=True) else f"values {np.abs(x - y).max()} apart"


def reason(refusal: str) -> str:
    """What tables call a refusal."""
    return next((title for title, said in REASONS.items() if re.search(said, refusal)), "something else")


def table(outcomes: Iterable[Outcome]) -> str:
    """All outcomes in Markdown, refusals by reason with the operators that they name."""
    outcomes = [one for one in outcomes if one.kind != "unable"]
    counts = Counter(one.kind for one in outcomes)
    rows = [("onnxruntime runs", len(outcomes)), *((kind, counts[kind]) for kind in ("equal", "wrong", "traceback"))]
    refused: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        if one.kind == "refused":
            refused[reason(one.reason)].append(one)
    lines = ["| node tests | |", "|---|---:|", *(f"| {what} | {count} |" for what, count in rows)]
    lines += [f"| refused | {counts['refused']} |", "", "| refused because of | tests | operators |", "|---|---:|---|"]
    for title, found in sorted(refused.items(), key=lambda item: -len(item[1])):
        operators = sorted({named for one in found for named in re.findall(r"Received ([\w.]+) writing", one.reason)})
        lines.append(f"| {title} | {len(found)} | {', '.join(operators)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = [outcome(*case) for case in cases(*sys.argv[1:2])]
    for one in found:
        if one.kind in ("wrong", "traceback") or (one.kind == "refused" and len(sys.argv) > 1):
            print(f"{one.kind} {one.name}: {one.reason}")
    print(table(found))
