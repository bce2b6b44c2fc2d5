"""What LiteRT's kernels can compute in integers, and the rules that they have for grids."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leadline.data import Samples
from leadline.targets.litert.match import WEIGHT_AXES, Site, sites
from leadline.targets.litert.read import Operator, Subgraph, Tensor, Tflite
from leadline.types import Grid, Scheme, refuse

Codes = NDArray[Any]

CPU = frozenset({*WEIGHT_AXES, "GELU", "ADD"})
"""What XNNPACK computes faster in integers; attention and normalisation are slower there than in float."""

MOVES = frozenset(
    "RESHAPE TRANSPOSE SLICE STRIDED_SLICE SPLIT PAD MIRROR_PAD SPACE_TO_DEPTH MAX_POOL_2D AVERAGE_POOL_2D "
    "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR GATHER GATHER_ND UNPACK BROADCAST_TO SQUEEZE".split()
)
"""Operators whose kernels want the output on the grid of the first input."""

JOINS = frozenset({"CONCATENATION", "PACK"})
"""Moves data, too, onto the output's grid."""

BLOCKS = (32, 64, 128, 256)
"""Block sizes that LiteRT knows, for linear layers with 4 bits."""

CLAMPS = frozenset({"MAXIMUM", "MINIMUM", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"})
"""What they cut off, the output's grid cuts off as well."""

UNIT = Scheme(bits=8, signed=True)
FIXED: Mapping[str, Grid] = {
    "SOFTMAX": Grid(np.array(1 / 256, np.float32), np.array(-128, np.int32), UNIT),
    "LOGISTIC": Grid(np.array(1 / 256, np.float32), np.array(-128, np.int32), UNIT),
    "TANH": Grid(np.array(1 / 128, np.float32), np.array(0, np.int32), UNIT),
}
"""Outputs whose grid the kernels have built in."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What to do to a float ``.tflite``.

    Attributes
    ----------
    content : bytes
        The float network; tensor names are unique and no two layers share a constant (see `prepare`).
    activations : dict of tensor name to Grid
        8 bits, one scale; unsigned ones are moved to int8 (zero point - 128, the same scale).
    parameters : dict of tensor name to (Grid, codes)
        Weights and int32 biases in the file's layout. A bias takes part in static integers only.
    notes : tuple of str
        One line for each thing that is not as the recipe says, or that was chosen.
    held_out : Samples or None
        What calibration did not see.
    calibrated : int
        How many samples it saw.
    """

    content: bytes
    activations: Mapping[str, Grid]
    parameters: Mapping[str, tuple[Grid, Codes]]
    notes: tuple[str, ...] = ()
    held_out: Samples | None = None
    calibrated: int = 0


def tool(name: str) -> Any:

    try:
        return importlib.import_module(name)
    except ImportError as error:
        rule = "writing .tflite needs ai-edge-quantizer: pip install 'leadline[tflite]'"
        raise refuse("to_tflite", rule, str(error)) from error


def to_int8(name: str, grid: Grid) -> Grid:
    """An activation's grid as LiteRT has it: int8, one scale. InputError where it has no such form."""
    scheme = grid.scheme
    if scheme.granularity != "tensor" or scheme.bits != 8:
        received = f"{scheme.bits} bits per {scheme.granularity}"
        raise refuse("to_tflite", f"the grid of activation '{name}' must have 8 bits and one scale", received)
    zero_point = grid.zero_point if scheme.signed else grid.zero_point - 128
    return Grid(grid.scale, zero_point, UNIT)


def tie(model: Tflite, grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Grids of activations under the rules that LiteRT's kernels have: a fixed output grid, or the input's. What only a
    clamp reads takes the clamp's, so that no code is spent on what is cut off."""
    graph, tied = model.main, {name: to_int8(name, grid) for name, grid in grids.items()}
    for operator in graph.operators:
        outputs = [graph.tensors[i] for i in operator.outputs if graph.tensors[i].dtype == "float32"]
        source = data_inputs(operator, graph)[:1]
        source_name = graph.tensors[source[0]].name if source else None
        for tensor in outputs:
            if operator.type in FIXED and tensor.name in tied:
                tied[tensor.name] = FIXED[operator.type]
            elif operator.type in MOVES and source_name in tied:
                assert source_name is not None
                tied[tensor.name] = tied[source_name]
    readers = graph.readers()
    for operator in reversed(graph.operators):
        source = data_inputs(operator, graph)
        if operator.type in CLAMPS and len(source) == 1 and len(readers[source[0]]) == 1:
            source_name, written = (graph.tensors[i].name for i in (source[0], operator.outputs[0]))
            if source_name in tied and written in tied:
                tied[source_name] = tied[written]
    return tied


def integer_operators(plan: Plan, model: Tflite, preset: Literal["cpu", "npu"]) -> list[Operator]:
    """The operators that will compute in integers: the preset's, as far as kernels exist and tensors have grids."""
    graph = model.main
    layers = {id(site.operator): site for site in sites(model)}
    chosen = {
        id(operator): operator
        for operator in graph.operators
        if (preset == "npu" or operator.type in CPU | MOVES | JOINS)
        and _supported(operator.type)
        and all(_has_grid(graph.tensors[i], plan) for i in (*operator.inputs, *operator.outputs) if i >= 0)
        and (operator.type not in WEIGHT_AXES or _has_weight(layers.get(id(operator)), graph, plan))
    }
    producers, readers = graph.producers(), graph.readers()
    while True:  # "cpu" moves data in integers where both sides are, "npu" where one is: never between float and float
        lonely = []
        for key, operator in chosen.items():
            if operator.type in MOVES | JOINS:
                before = [id(producers[i]) in chosen for i in data_inputs(operator, graph) if i in producers]
                behind = [id(reader) in chosen for i in operator.outputs for reader in readers.get(i, [])]
                stays = all(before) and all(behind) if preset == "cpu" else any((*before, *behind))
                if not stays:
                    lonely.append(key)
        if not lonely:
            break
        for key in lonely:
            del chosen[key]
    return list(chosen.values())


def data_inputs(operator: Operator, graph: Subgraph) -> list[int]:
    return [
        i for i in operator.inputs if i >= 0 and graph.tensors[i].dtype == "float32" and not graph.tensors[i].constant
    ]


def _has_grid(tensor: Tensor, plan: Plan) -> bool:
    return tensor.dtype != "float32" or tensor.constant or tensor.name in plan.activations


def _has_weight(site: Site | None, graph: Subgraph, plan: Plan) -> bool:
    entry = plan.parameters.get(graph.tensors[site.weight].name) if site else None
    return entry is not None and entry[0].scheme.granularity != "block"


def _supported(kind: str) -> bool:
    """Whether ai-edge-quantizer's policy has the operator with 8-bit weights and activations."""
    try:
        tool("ai_edge_quantizer.recipe_manager").RecipeManager().add_static_config("^", operation(kind), 8, 8)
    except (KeyError, ValueError):
        return False
    return True


def operation(kind: str) -> Any:
    """ai-edge-quantizer's name of an operator. KeyError where it has none."""
    names = tool("ai_edge_quantizer.utils.tfl_flatbuffer_utils").TFL_OP_CODE_TO_NAME
    return names[getattr(tool("ai_edge_litert.schema_py_generated").BuiltinOperator, kind, -1)]


def block_scales(grid: Grid) -> NDArray[np.float32]:
    """Scales of blocks as LiteRT's kernels have them: rounded to bfloat16 (XNNPACK), stored as float16."""
    import ml_dtypes

    return grid.scale.astype(ml_dtypes.bfloat16).astype(np.float16).astype(np.float32)


def channel_grid(grid: Grid, axis: int) -> Grid:
    """A weight's grid along the axis that the file's layout has."""
    return Grid(grid.scale, grid.zero_point, replace(grid.scheme, axis=axis)) if grid.scheme.axis is not None else grid
