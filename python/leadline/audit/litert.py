"""LiteRT: ai-edge-quantizer asked about each operator, and the interpreter about the whole network.

``python -m leadline.audit.litert FILE`` prepares a ``.tflite`` in the interpreter and prints what it says, so that a
crash of the interpreter ends that process only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.audit.findings import Audit, Finding, Status, ordered
from leadline.types import refuse

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
_NORM = "MEAN SQUARED_DIFFERENCE RSQRT SUB MUL ADD"
_WRITTEN: dict[str, str] = {
    "Abs": "ABS", "Add": "ADD", "And": "LOGICAL_AND", "AveragePool": "AVERAGE_POOL_2D", "BatchNormalization": "MUL ADD",
    "Cast": "CAST", "Ceil": "CEIL", "Clip": "MAXIMUM MINIMUM", "Concat": "CONCATENATION", "Conv": "CONV_2D",
    "ConvTranspose": "TRANSPOSE_CONV", "Cos": "COS", "DepthToSpace": "RESHAPE TRANSPOSE", "Div": "DIV", "Elu": "ELU",
    "Equal": "EQUAL", "Erf": "MUL ADD DIV", "Exp": "EXP", "Expand": "BROADCAST_TO", "Flatten": "RESHAPE",
    "Floor": "FLOOR", "Gather": "GATHER", "Gelu": "GELU", "Gemm": "FULLY_CONNECTED", "GlobalAveragePool": "MEAN",
    "GlobalMaxPool": "REDUCE_MAX", "Greater": "GREATER", "GreaterOrEqual": "GREATER_EQUAL",
    "GroupNormalization": f"RESHAPE {_NORM}", "HardSigmoid": "ADD MUL MAXIMUM MINIMUM", "HardSwish": "HARD_SWISH",
    "Identity": "", "InstanceNormalization": _NORM, "LayerNormalization": _NORM, "LeakyRelu": "LEAKY_RELU",
    "Less": "LESS", "LessOrEqual": "LESS_EQUAL", "Log": "LOG", "LogSoftmax": "LOG_SOFTMAX", "MatMul": "BATCH_MATMUL",
    "Max": "MAXIMUM", "MaxPool": "MAX_POOL_2D", "Min": "MINIMUM", "Mish": "EXP LOG TANH MUL", "Mul": "MUL",
    "Neg": "NEG", "Not": "LOGICAL_NOT", "Or": "LOGICAL_OR", "PRelu": "PRELU", "Pad": "PAD", "Pow": "POW",
    "Reciprocal": "DIV", "ReduceMax": "REDUCE_MAX", "ReduceMean": "MEAN", "ReduceMin": "REDUCE_MIN", "ReduceSum": "SUM",
    "Relu": "RELU", "Reshape": "RESHAPE", "Round": "ROUND", "Sigmoid": "LOGISTIC", "Sin": "SIN",
    "Slice": "STRIDED_SLICE", "Softmax": "SOFTMAX", "Softplus": "EXP LOG", "SpaceToDepth": "RESHAPE TRANSPOSE",
    "Split": "STRIDED_SLICE", "Sqrt": "SQRT", "Squeeze": "RESHAPE", "Sub": "SUB", "Sum": "ADD", "Tanh": "TANH", "Tile": "TILE",
    "Transpose": "TRANSPOSE", "Unsqueeze": "RESHAPE", "Where": "SELECT_V2",
}  # fmt: skip
"""ONNX operator to the operators of the ``.tflite`` that it becomes as a torch module through litert-torch: a list."""
_RESIZES = {"linear": "RESIZE_BILINEAR", "nearest": "RESIZE_NEAREST_NEIGHBOR", "cubic": "FULLY_CONNECTED"}


def audit_tflite(file: Path) -> Audit:
    """Every operator of a ``.tflite``."""
    from leadline.export import tflite_read

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
    basis = "ai-edge-quantizer's policy for each operator, LiteRT's interpreter for the whole"
    return Audit(file.name, "litert", basis, total, total, (), ordered(findings))


def audit_onnx(network: Network) -> Audit:
    """Every operator of an ONNX network, by what it becomes on its way through PyTorch and litert-torch."""
    graph = network.graph
    if graph is None:
        return Audit(network.file, "litert", "leadline's import, which the network does not pass", network.nodes,
                     network.nodes, (), ordered(network.obstacles))  # fmt: skip
    policy = _Policy()
    groups: dict[tuple[str, Status, str], list[str]] = {}
    for node in graph.nodes:
        status, note = _answer(policy, graph, node)
        groups.setdefault((node.op_type, status, note), []).append(node.name)
    findings = ordered(
        Finding(kind, status, tuple(names), 1, note, asked=False) for (kind, status, note), names in groups.items()
    )
    basis = "what each operator becomes through litert-torch: a list; ai-edge-quantizer's policy for that: asked"
    return Audit(network.file, "litert", basis, network.nodes, len(graph.nodes), network.rewrites, findings)


def _answer(policy: _Policy, graph: Graph, node: Node) -> tuple[Status, str]:
    kinds: tuple[str, ...]
    if node.op_type == "Resize":
        kinds = (_RESIZES[node.attrs.get("mode", "nearest")],)
    elif node.op_type in _WRITTEN:
        kinds = tuple(_WRITTEN[node.op_type].split())
    else:
        return "unsupported", "leadline has no torch operator for it"
    if node.op_type == "Conv" and node.attrs.get("group", 1) > 1 and graph.shape(node.inputs[1])[1] == 1:
        kinds = ("DEPTHWISE_CONV_2D",)
    status, note = policy.says(kinds)
    return status, f"{', '.join(kinds)}: {note}" if kinds else "nothing is written for it"


class _Policy:
    """ai-edge-quantizer's answers, each asked once."""

    def __init__(self) -> None:
        try:
            from ai_edge_litert import schema_py_generated
            from ai_edge_quantizer import algorithm_manager, qtyping, recipe
            from ai_edge_quantizer.utils import tfl_flatbuffer_utils
        except ImportError as error:
            rule = "auditing for litert needs ai-edge-quantizer: pip install 'leadline[tflite]'"
            raise refuse("audit", rule, str(error)) from error
        self._check = algorithm_manager.check_op_quantization_config
        self._codes = vars(schema_py_generated.BuiltinOperator)
        self._names = tfl_flatbuffer_utils.TFL_OP_CODE_TO_NAME
        self._configs = {}
        for label, function in _RECIPES.items():
            (entry,) = getattr(recipe, function)()
            config = qtyping.OpQuantizationConfig.from_dict(dict(entry["op_config"]))
            self._configs[label] = (str(entry["algorithm_key"].value), config)
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
        name = self._names.get(self._codes.get(kind))
        if name is None:
            return False
        try:
            self._check(algorithm, name, config)
        except ValueError:
            return False
        return True


def _interpreter(file: Path) -> str | None:
    """Why LiteRT cannot prepare the network; None if it can."""
    command = [sys.executable, "-m", "leadline.audit.litert", str(file)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return None
    said = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
    return said[-1].removeprefix("refused: ") if said else f"it ended the process (exit code {done.returncode})"


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
