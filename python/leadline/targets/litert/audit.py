"""LiteRT: ai-edge-quantizer asked about each operator, and the interpreter about the whole network.

``python -m leadline.targets.litert.audit FILE`` prepares a ``.tflite`` in the interpreter and prints what it says, so
that a crash of the interpreter ends that process only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.audit.findings import Audit, Finding, Status, ordered, unread
from leadline.targets.litert.kernels import operation, tool
from leadline.types import InputError

if TYPE_CHECKING:
    from leadline.audit.network import Network
    from leadline.graph import Graph, Node

_RECIPES = {
    "static int8": "static_wi8_ai8",
    "dynamic int8": "dynamic_wi8_afp32",
    "dynamic int4": "dynamic_wi4_afp32",
}
"""What users call it, and the function of ai_edge_quantizer.recipe."""

_CARRIERS = ("QUANTIZE", "DEQUANTIZE")
_NORM = "RESHAPE MEAN SQUARED_DIFFERENCE RSQRT SUB MUL ADD"
_WRITTEN: dict[str, str] = {
    "Abs": "ABS", "Add": "ADD", "And": "LOGICAL_AND", "AveragePool": "AVERAGE_POOL_2D", "BatchNormalization": "MUL ADD",
    "Cast": "CAST", "Ceil": "CEIL", "Clip": "MAXIMUM MINIMUM", "Concat": "CONCATENATION", "Conv": "CONV_2D",
    "ConvTranspose": "TRANSPOSE_CONV", "Cos": "COS", "DepthToSpace": "RESHAPE TRANSPOSE", "Div": "DIV",
    "Elu": "EXP SUB GREATER_EQUAL SELECT", "Equal": "EQUAL", "Erf": "MINIMUM MAXIMUM MUL ADD DIV", "Exp": "EXP",
    "Expand": "BROADCAST_TO", "Flatten": "RESHAPE", "Floor": "FLOOR", "Gather": "GATHER_ND", "Gelu": "GELU",
    "Gemm": "FULLY_CONNECTED", "GlobalAveragePool": "MEAN", "GlobalMaxPool": "REDUCE_MAX", "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL", "GroupNormalization": "RESHAPE MEAN SUB MUL ADD RSQRT",
    "HardSigmoid": "MUL ADD RELU_0_TO_1", "HardSwish": "HARD_SWISH", "Identity": "",
    "InstanceNormalization": "MEAN SUB MUL ADD RESHAPE RSQRT", "LayerNormalization": _NORM, "LeakyRelu": "LEAKY_RELU",
    "Less": "LESS", "LessOrEqual": "LESS_EQUAL", "Log": "LOG", "LogSoftmax": "REDUCE_MAX MAXIMUM SUB EXP SUM LOG",
    "MatMul": "BATCH_MATMUL", "Max": "MAXIMUM", "MaxPool": "MAX_POOL_2D", "Min": "MINIMUM",
    "Mish": "EXP ADD LOG GREATER SELECT TANH MUL", "Mul": "MUL", "Neg": "MUL", "Not": "", "Or": "LOGICAL_OR",
    "PRelu": "RELU MINIMUM MUL ADD", "Pad": "PAD", "Pow": "POW", "Reciprocal": "DIV", "ReduceMax": "REDUCE_MAX",
    "ReduceMean": "MEAN", "ReduceMin": "REDUCE_MIN", "ReduceSum": "SUM", "Relu": "RELU", "Reshape": "RESHAPE",
    "Round": "ROUND", "Sigmoid": "LOGISTIC", "Sin": "SIN", "Slice": "SLICE", "Softmax": "SOFTMAX",
    "Softplus": "EXP ADD LOG GREATER SELECT", "SpaceToDepth": "RESHAPE TRANSPOSE", "Split": "SLICE", "Sqrt": "SQRT",
    "Squeeze": "RESHAPE", "Sub": "SUB", "Sum": "ADD", "Tanh": "TANH", "Tile": "RESHAPE BROADCAST_TO",
    "Transpose": "TRANSPOSE", "Unsqueeze": "RESHAPE", "Where": "SELECT",
}  # fmt: skip
"""ONNX operator to what litert-torch 0.10 wrote for it, each converted alone: for where it is not installed."""
_FUSING = frozenset("Add AveragePool Conv Div Gemm MaxPool Mul Sub".split())
"""Operators of a .tflite that clamp their own output."""
_CUBIC = "BROADCAST_TO RESHAPE CONCATENATION TRANSPOSE GATHER_ND MUL ADD"
_RESIZES = {"linear": "RESIZE_BILINEAR", "nearest": "RESIZE_NEAREST_NEIGHBOR", "cubic": _CUBIC}


def audit_tflite(file: Path) -> Audit:
    """Every operator of a ``.tflite``."""
    total, findings = _ask(file)
    basis = "ai-edge-quantizer's policy for each operator, LiteRT's interpreter for the whole"
    return Audit(file.name, "litert", basis, total, total, (), findings)


def audit_onnx(network: Network) -> Audit:
    """A network as litert-torch converts it; where that is not installed, by what it is known to write."""
    graph = network.graph
    if graph is None:
        return unread(network, "litert")
    findings = _listed(graph)
    basis = "what each operator becomes through litert-torch: a list; ai-edge-quantizer's policy for that: asked"
    if find_spec("litert_torch") and not any(finding.status == "unsupported" for finding in findings):
        findings = _converted(graph)
        basis = "converted by litert-torch; ai-edge-quantizer's policy for each operator, LiteRT's interpreter for all"
    return Audit(network.file, "litert", basis, network.nodes, len(graph.nodes), network.rewrites, findings)


def _converted(graph: Graph) -> tuple[Finding, ...]:
    from leadline.targets.litert.convert import convert

    try:
        content = convert(graph)
    except InputError:
        raise
    except Exception as error:  # torch.export and the converter raise whatever went wrong inside
        reason = f"litert-torch: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return (Finding("the network", "unsupported", (graph.name,), 1, reason),)
    with tempfile.TemporaryDirectory(prefix="leadline-audit-") as folder:
        file = Path(folder) / f"{graph.name}.tflite"
        file.write_bytes(content)
        return _ask(file)[1]


def _ask(file: Path) -> tuple[int, tuple[Finding, ...]]:
    """(operators, findings)"""
    from leadline.targets.litert import read as tflite_read

    model = tflite_read.read(file)
    policy = _Policy()
    refusal = _interpreter(file)
    groups: dict[tuple[str, Status, str], list[str]] = {}
    total = 0
    for graph in model.subgraphs:
        for index, operator in enumerate(graph.operators):
            total += 1
            name = graph.tensors[operator.outputs[0]].name if operator.outputs else operator.type
            status, note = policy.says((operator.type,))
            if operator.type in _CARRIERS:
                status, note = "supported", "already quantised"
            elif refusal is not None and _is_meant(refusal, index, operator.type):
                status, note = "unsupported", f"the interpreter: {refusal}"
            groups.setdefault((operator.type, status, note), []).append(name)
    findings = [Finding(kind, status, tuple(names), len(names), note) for (kind, status, note), names in groups.items()]
    if refusal is not None and not any(finding.status == "unsupported" for finding in findings):
        findings.append(Finding("the network", "unsupported", (file.name,), 1, f"the interpreter: {refusal}"))
    return total, ordered(findings)


def _listed(graph: Graph) -> tuple[Finding, ...]:
    policy = _Policy()
    groups: dict[tuple[str, Status, str], list[str]] = {}
    fused = _fused(graph)
    for node in graph.nodes:
        status, note = _answer(policy, graph, node)
        if node.name in fused:
            status, note = "supported", "fused into the operator before it"
        groups.setdefault((node.op_type, status, note), []).append(node.name)
    return ordered(
        Finding(kind, status, tuple(names), 1, note, asked=False) for (kind, status, note), names in groups.items()
    )


def _answer(policy: _Policy, graph: Graph, node: Node) -> tuple[Status, str]:
    if node.op_type not in _WRITTEN and node.op_type != "Resize":
        return "unsupported", "leadline has no torch operator for it"
    kinds = tuple(_written(graph, node).split())
    status, note = policy.says(kinds)
    return status, f"{', '.join(kinds)}: {note}" if kinds else "nothing is written for it"


def _fused(graph: Graph) -> set[str]:
    """Relu and Relu6 that alone read an operator which can clamp."""
    writers, readers = graph.producers(), graph.readers()
    fused = set()
    for node in graph.nodes:
        writer = writers.get(node.inputs[0]) if node.inputs else None
        clamps = node.op_type in ("Relu", "Clip") and _written(graph, node) in ("RELU", "RELU6")
        if clamps and writer is not None and writer.op_type in _FUSING and len(readers[node.inputs[0]]) == 1:
            fused.add(node.name)
    return fused


def _written(graph: Graph, node: Node) -> str:
    match node.op_type:
        case "Resize":
            return _RESIZES[node.attrs.get("mode", "nearest")]
        case "Conv" if node.attrs.get("group", 1) > 1 and graph.shape(node.inputs[1])[1] == 1:
            return "DEPTHWISE_CONV_2D"
        case "Clip" if [float(graph.weights[name].flat[0]) for name in node.inputs[1:] if name in graph.weights] == [
            0,
            6,
        ]:
            return "RELU6"
        case "Pad" if node.attrs.get("mode", "constant") == "reflect":
            return "MIRROR_PAD"
    return _WRITTEN[node.op_type]


class _Policy:
    """ai-edge-quantizer's answers, each asked once."""

    def __init__(self) -> None:
        recipes = tool("ai_edge_quantizer.recipe")
        form = tool("ai_edge_quantizer.qtyping").OpQuantizationConfig.from_dict
        self._check = tool("ai_edge_quantizer.algorithm_manager").check_op_quantization_config
        self._configs = {}
        for label, function in _RECIPES.items():
            (entry,) = getattr(recipes, function)()
            self._configs[label] = (str(entry["algorithm_key"].value), form(dict(entry["op_config"])))
        self._known: dict[str, tuple[str, ...]] = {}

    def takes(self, kind: str) -> tuple[str, ...]:
        """The recipes under which an operator type is quantised."""
        if kind not in self._known:
            self._known[kind] = tuple(label for label in _RECIPES if self._ask(kind, *self._configs[label]))
        return self._known[kind]

    def says(self, kinds: Iterable[str]) -> tuple[Status, str]:
        """Of operators that stand for one: float as soon as one of them has no static grid."""
        every = tuple(kinds)
        answers = [self.takes(kind) for kind in every]
        floats = [kind for kind, answer in zip(every, answers, strict=True) if "static int8" not in answer]
        if not floats:
            common = [label for label in _RECIPES if any(label in answer for answer in answers)]
            return "supported", ", ".join(common)
        return "float", "no static int8" + (f" for {', '.join(floats)}" if len(every) > 1 else "")

    def _ask(self, kind: str, algorithm: str, config: Any) -> bool:
        try:
            self._check(algorithm, operation(kind), config)
        except (KeyError, ValueError):
            return False
        return True


def _interpreter(file: Path) -> str | None:
    """Why LiteRT cannot prepare the network; None if it can."""
    command = [sys.executable, "-m", "leadline.targets.litert.audit", str(file)]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if child.returncode == 0:
        return None
    reasons = [line for line in child.stdout.splitlines() if line.startswith("refused: ")]
    return reasons[-1].removeprefix("refused: ") if reasons else f"it ended the process (exit code {child.returncode})"


def _is_meant(refusal: str, index: int, kind: str) -> bool:
    """Whether the interpreter's message is about this operator."""
    number = re.search(r"Node number (\d+)", refusal)
    custom = re.search(r"unresolved custom op: ([\w.]+)", refusal)
    return (number is not None and int(number[1]) == index) or (custom is not None and custom[1].rstrip(".") == kind)


def _work(file: str) -> None:
    from ai_edge_litert.interpreter import Interpreter

    try:
        Interpreter(file, num_threads=1).allocate_tensors()
    except (RuntimeError, ValueError) as error:
        print(f"refused: {' '.join(str(error).split())}")
        raise SystemExit(1) from None


if __name__ == "__main__":
    _work(sys.argv[1])
