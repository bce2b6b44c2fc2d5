"""The steps of recipes, each a frozen configuration. What they do lives in ``leadline.steps``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from leadline import observers, rounding
from leadline.types import Option, refuse

__all__ = [
    "STEPS",
    "Calibrate",
    "CorrectBias",
    "Equalize",
    "Fold",
    "Heads",
    "Observer",
    "Polish",
    "Rotate",
    "Round",
    "Rounding",
    "Smooth",
    "Step",
    "WeightObserver",
]

if TYPE_CHECKING:  # the registries alone know the names
    Observer: TypeAlias = str
    """How the range of an activation is chosen: a name of ``leadline.observers.OBSERVERS``, or "best"."""
    WeightObserver: TypeAlias = str
    """How the range of a weight is chosen: a name of ``leadline.observers.METHODS``."""
    Rounding: TypeAlias = str
    """How codes are chosen: a name of ``leadline.rounding.METHODS``."""
else:
    Observer = Literal[*observers.OBSERVERS, "best"]
    WeightObserver = Literal[observers.METHODS]
    Rounding = Literal[*rounding.METHODS]

Cls = TypeVar("Cls", bound=type)


class Within(NamedTuple):
    """The bounds of a number, both included."""

    low: float
    high: float


STEPS: dict[str, type[Step]] = {}
"""By name; a subclass of Step enters itself."""


@dataclass(frozen=True)
class Step:
    """What steps have in common: values of the types and within the bounds that the fields declare, however a step is
    made; and their place among the others (`leadline.recipe.check_order`).

    A new step is a subclass here and the function `run` of a module in ``leadline.steps`` that is called as the step
    is, with ``_`` for ``-``.
    """

    step: ClassVar[str]
    rewrites: ClassVar[bool] = False
    """Whether it changes the float network, and so spoils the work of every step that does not: grids and codes belong
    to the network that they were found on."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Steps that have to come before: what this one works on."""
    spoils: ClassVar[tuple[str, ...]] = ()
    """Steps that must not come before: this one would undo their work, or change what they looked at. Its own name:
    to do it twice makes no sense."""

    def __init_subclass__(cls) -> None:
        if cls.step in STEPS:
            raise TypeError(f"there is a step '{cls.step}' already")
        STEPS[cls.step] = cls

    @property
    def own_operators(self) -> bool:
        """Whether it puts operators of leadline's own into the network."""
        return False

    @classmethod
    def must_precede(cls) -> tuple[str, ...]:
        """The steps that it would spoil."""
        quantising = [name for name, other in STEPS.items() if not other.rewrites]
        return (*cls.spoils, *(quantising if cls.rewrites else ()))

    def __post_init__(self) -> None:
        check_options(type(self), {field.name: getattr(self, field.name) for field in fields(self)}, self.step)


def check_options(cls: type[Step], values: Mapping[str, Any], where: str) -> None:
    """InputError, saying where, for a value that is not of its field's type, or out of bounds."""
    hints = _hints(cls)
    for key, value in values.items():
        hint, bounds = hints[key]
        check_type(value, hint, f"{where}: {key}")
        if bounds and not bounds.low <= value <= bounds.high:
            rule = f"{where}: {key} must lie from {bounds.low:g} to {bounds.high:g}"
            raise refuse("Recipe", rule, repr(value))


def check_type(value: object, wanted: Any, what: str) -> None:
    """InputError where a value is not of a plain type, or none of the choices of a Literal."""
    if get_origin(wanted) is Literal:
        choices = get_args(wanted)
        if not isinstance(value, str) or value not in choices:
            raise refuse("Recipe", f"{what} must be one of {', '.join(choices)}", repr(value))
        return
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise refuse("Recipe", f"{what} must be of type {wanted.__name__}", repr(value))


def _hints(cls: type[Step]) -> dict[str, tuple[Any, Within | None]]:
    """Of each field: its type, and the bounds of a number."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        name: get_args(hint) if get_origin(hint) is Annotated else (hint, None)
        for name, hint in hints.items()
        if get_origin(hint) is not ClassVar
    }


def takes(algorithms: Iterable[Any]) -> Callable[[Cls], Cls]:
    """Give a step the options of the algorithms that it can be told to use (entries of a registry), as fields, by
    keyword alone. Algorithms with an option of one name share it."""
    options: dict[str, Option] = {}
    for algorithm in algorithms:
        options |= algorithm.options

    def add(cls: Cls) -> Cls:
        for name, option in options.items():
            cls.__annotations__[name] = Annotated[type(option.default), Within(option.low, option.high)]
            setattr(cls, name, field(default=option.default, kw_only=True))
        return cls

    return add


def options_of(step: Step, algorithm: Any) -> dict[str, float]:
    """What a step says of the options of one of its algorithms (an entry of a registry)."""
    return {name: getattr(step, name) for name in algorithm.options}


@dataclass(frozen=True)
class Fold(Step):
    """Fold BatchNorm, LayerScale and constant per-channel factors into the neighbouring layer. Exact."""

    step: ClassVar[str] = "fold"
    rewrites: ClassVar[bool] = True
    spoils: ClassVar[tuple[str, ...]] = ("fold", "heads", "polish")


@dataclass(frozen=True)
class Heads(Step):
    """Detection heads: part what is only joined to be split again, give what the last layers write and all behind them
    more bits than features have, and a few features, too, and have gates judge scores and boxes apart. Nothing where
    there are none.

    On one 8-bit grid for boxes in pixels and scores of 0 to 1, as exports of YOLOv8 ask for, all scores become 0.
    """

    step: ClassVar[str] = "heads"
    rewrites: ClassVar[bool] = True
    spoils: ClassVar[tuple[str, ...]] = ("heads", "polish")
    separate: bool = False
    """Give boxes and scores an output each; else they stay in one, of `bits` bits."""
    bits: Annotated[int, Within(8, 16)] = 16
    """Of the activations from the last layers' outputs on, where the recipe's have fewer."""
    widen: Annotated[float, Within(0, 1)] = 0.05
    """Share of the features that get as many, too: those whose rounding to 8 bits costs scores and boxes most.
    None for Hexagon, which does not build every convolution of 16-bit inputs."""


@dataclass(frozen=True)
class Equalize(Step):
    """Cross-layer equalisation of chains joined by ReLU-like activations, and absorption of high biases.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, eq. 8-15.
    """

    step: ClassVar[str] = "equalize"
    rewrites: ClassVar[bool] = True
    spoils: ClassVar[tuple[str, ...]] = ("equalize", "polish")
    iterations: Annotated[int, Within(1, 10_000)] = 20
    """Sweeps over all chains at most; stops early once no scale moves by more than 1 %."""
    max_scale: Annotated[float, Within(2, 1e6)] = 32.0
    """Scales are clamped to [1/max_scale, max_scale], so that a pruned channel cannot blow up its neighbour."""
    absorb_bias: bool = True
    """Move what every value of a ReLU's input lies above, max(0, min(lowest seen, mean - 6 std)), into the next layer's
    bias."""


@dataclass(frozen=True)
class Rotate(Step):
    """Hadamard rotations that spread outlier channels over all channels. Exact.

    Sources: Ashkboos et al., QuaRot, 2024, for rotating a transformer's weights; `leadline.hadamard.layernorm_rotation`
    for the rotations that LayerNorm does not see.
    """

    step: ClassVar[str] = "rotate"
    rewrites: ClassVar[bool] = True
    spoils: ClassVar[tuple[str, ...]] = ("smooth", "polish")
    residual: bool = True
    """Rotate the residual stream; folded into the weights around it."""
    heads: bool = True
    """Rotate each attention head between value and projection; folded into their weights."""
    online: bool = False
    """Rotate what every linear layer reads by an operator of its own, which runs on the device: the graph gains
    multiplications, and the log counts them. In place of the others. (Feng et al., QuantVGGT, 2025.)"""
    seeds: Annotated[int, Within(1, 1000)] = 8
    """Random rotations of the residual stream to choose from: the flattest is kept."""

    @property
    def own_operators(self) -> bool:
        return self.online


@dataclass(frozen=True)
class Smooth(Step):
    """Move the spread of channels from activations into weights, where it can be folded. Exact.

    Sources: Xiao et al., SmoothQuant, 2023, eq. 4; Li et al., RepQ-ViT, 2023, for shifts.
    """

    step: ClassVar[str] = "smooth"
    rewrites: ClassVar[bool] = True
    spoils: ClassVar[tuple[str, ...]] = ("polish",)
    alpha: Annotated[float, Within(0, 1)] = 0.0
    """How much of the spread moves, 0 to 1; 0 chooses for each layer by the predicted error of its output."""
    shift: bool = False
    """Move the middle of each channel's range as well, into the bias of the layer that reads it."""
    attention: bool = True
    """Also scale value against projection, and query against key, channel by channel."""


@dataclass(frozen=True)
class Polish(Step):
    """LogNP: quantise the logarithm of activations, channel by channel, with explicit operators around the grid.

    Source: Shen et al., QuartDepth, 2025. No NPU multiplies such codes: for simulation, or look-up tables.
    """

    step: ClassVar[str] = "polish"
    rewrites: ClassVar[bool] = True
    pattern: str = "*"
    """Shell pattern: the layers whose inputs are polished, by name."""
    percentile: Annotated[float, Within(1, 100)] = 95.0
    """Of |x|, for each channel: where the logarithm bends."""
    adaptive: bool = True
    """Choose for each channel among several bends, and none, by the error on its histogram."""

    @property
    def own_operators(self) -> bool:
        return True


@dataclass(frozen=True)
@takes(observers.OBSERVERS.values())
class Calibrate(Step):
    """Observe the network on the calibration samples and choose every grid. Takes the options of
    `leadline.observers.OBSERVERS`, for weights and activations alike."""

    step: ClassVar[str] = "calibrate"
    spoils: ClassVar[tuple[str, ...]] = ("calibrate", "round", "correct-bias")
    activations: Observer = "best"
    """"best" tries observed ranges and those of least squared error on the whole network and keeps what simulates
    best on held-out samples."""
    weights: WeightObserver = "mse"
    widen: Annotated[float, Within(0, 1)] = 0.0
    """Of the activations with fewer than 8 bits, the share (0 to 1) that get 8: those whose grids, each by itself,
    disturb the network's outputs most."""

    if TYPE_CHECKING:

        def __init__(
            self, activations: str = "best", weights: str = "mse", widen: float = 0.0, **options: float
        ) -> None: ...


@dataclass(frozen=True)
@takes(rounding.METHODS.values())
class Round(Step):
    """Turn weights into integer codes. Takes the options of `leadline.rounding.METHODS`."""

    step: ClassVar[str] = "round"
    needs: ClassVar[tuple[str, ...]] = ("calibrate",)
    spoils: ClassVar[tuple[str, ...]] = ("round", "correct-bias")
    method: Rounding = "nearest"
    """The others choose codes against the moments of each layer's inputs behind everything quantised upstream:
    "best" keeps, for each layer, what is lowest on held-out samples."""
    compensate: bool = False
    """Round not the weight itself, but the one that makes up for the errors of the layer's inputs; kept where that
    lowers the layer's error on held-out samples."""
    damping: Annotated[float, Within(0, 100)] = 0.0
    """Of the compensation, as a share of the mean second moment; 0 tries several and keeps what is lowest on held-out
    samples."""
    kfac: bool = False
    """Then let a layer's outputs make up for one another, as the network's outputs depend on them (K-FAC); kept where
    the simulated output error falls. Dozens of forward passes for each layer. Ignored by "nearest"."""

    if TYPE_CHECKING:

        def __init__(
            self,
            method: str = "nearest",
            compensate: bool = False,
            damping: float = 0.0,
            kfac: bool = False,
            **options: float,
        ) -> None: ...


@dataclass(frozen=True)
class CorrectBias(Step):
    """Shift each layer's bias by the mean output error that quantising the layer causes.

    Source: Nagel et al. 2019, section 4.2, in its empirical form.
    """

    step: ClassVar[str] = "correct-bias"
    needs: ClassVar[tuple[str, ...]] = ("calibrate", "round")
    spoils: ClassVar[tuple[str, ...]] = ("correct-bias",)
