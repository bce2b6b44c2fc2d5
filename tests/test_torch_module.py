"""leadline.torch.to_module: the same numbers as onnxruntime, on every operator and on real networks; and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import testbed
from graph_models import FLOAT_NOISE, distance, model, node, random
from leadline import quantize
from leadline.depth import networks
from leadline.graph import Graph, Node, Session
from leadline.pipeline import Quantized
from leadline.recipe import Calibrate, Recipe, Round
from leadline.types import Grid, InputError, Scheme
from small_networks import conv_relu6_depthwise, samples
from small_transformer import transformer

torch = pytest.importorskip("torch", reason="torch is not installed")

from leadline.torch import GraphModule, SimulatedModule, to_module  # noqa: E402

pytestmark = pytest.mark.torch


def run(module: GraphModule, graph: Graph, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(feed[value.name]) for value in graph.inputs))
    given = outputs if isinstance(outputs, tuple) else (outputs,)
    return {value.name: tensor.numpy() for value, tensor in zip(graph.outputs, given, strict=True)}


def feed_of(graph: Graph, spread: float = 1.0) -> dict[str, np.ndarray]:
    return {value.name: random(*value.shape, spread=spread) for value in graph.inputs}


def same(graph: Graph, feed: dict[str, np.ndarray] | None = None, noise: float = FLOAT_NOISE) -> None:
    feed = feed or feed_of(graph)
    with Session(graph, optimize=False, threads=1) as session:
        assert distance(session.run(feed), run(to_module(graph), graph, feed)) < noise


PICTURE = (1, 4, 9, 8)
KERNEL = {"w": random(6, 4, 3, 3), "b": random(6)}
OPERATORS: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], dict[str, Any]]] = {
    "conv": ([node("Conv", "x w b", "y", pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2])], PICTURE, KERNEL),
    "conv1d": ([node("Conv", "x w", "y", pads=[1, 1])], (2, 4, 9), {"w": random(6, 4, 3)}),
    "grouped": ([node("Conv", "x w", "y", group=2)], PICTURE, {"w": random(6, 2, 3, 3)}),
    "transposed": (
        [node("ConvTranspose", "x w b", "y", strides=[2, 2], pads=[1, 1, 0, 0], output_padding=[1, 1])],
        PICTURE,
        {"w": random(4, 6, 3, 3), "b": random(6)},
    ),
    "linear": ([node("MatMul", "x w", "m"), node("Add", "m b", "y")], (2, 5, 8), {"w": random(8, 3), "b": random(3)}),
    "gemm": ([node("Gemm", "x w b", "y", alpha=0.5, beta=2.0)], (4, 8), {"w": random(8, 3), "b": random(4, 3)}),
    "layer norm": (
        [node("LayerNormalization", "x g b", "y", axis=-2)],
        (2, 5, 8),
        {"g": random(5, 8), "b": random(5, 8)},
    ),
    "instance norm": ([node("InstanceNormalization", "x g b", "y")], PICTURE, {"g": random(4), "b": random(4)}),
    "batch norm": (
        [node("Relu", "x", "r"), node("BatchNormalization", "r g b m v", "y")],
        PICTURE,
        {"g": random(4), "b": random(4), "m": random(4), "v": np.abs(random(4)) + 0.1},
    ),
    "gelu": ([node("Gelu", "x", "a"), node("Gelu", "a", "y", approximate="tanh")], PICTURE, {}),
    "clip": (
        [node("Clip", "x lo", "a"), node("Clip", "a lo hi", "y")],
        PICTURE,
        {"lo": np.float32(-0.5), "hi": np.float32(0.7)},
    ),
    "activations": (
        [
            node("HardSwish", "x", "a"), node("LeakyRelu", "a", "b", alpha=0.2), node("Elu", "b", "c", alpha=0.7),
            node("HardSigmoid", "c", "d", alpha=0.3, beta=0.4), node("PRelu", "d s", "e"), node("Tanh", "e", "f"),
            node("Softmax", "f", "y", axis=1),
        ],
        PICTURE,
        {"s": random(4, 1, 1)},
    ),
    "mean": ([node("ReduceMean", "x", "y", axes=[1, -1], keepdims=0)], PICTURE, {}),
    "global": ([node("GlobalAveragePool", "x", "y")], PICTURE, {}),
    "average": (
        [node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], ceil_mode=1)],
        PICTURE,
        {},
    ),
    "max pool": ([node("MaxPool", "x", "y", kernel_shape=[2, 3], pads=[0, 1, 1, 1], strides=[2, 2])], PICTURE, {}),
    "min max": ([node("Max", "x c", "a"), node("Min", "a x", "y")], PICTURE, {"c": random(1, 4, 1, 1)}),
    "power": ([node("Abs", "x", "a"), node("Sqrt", "a", "b"), node("Pow", "b p", "y")], PICTURE, {"p": np.float32(3)}),
    "pad": (
        [node("Pad", "x p v", "y")],
        PICTURE,
        {"p": np.array([0, 1, 2, 0, 0, 0, 1, 3]), "v": np.float32(0.3)},
    ),
    "reflect": ([node("Pad", "x p", "y", mode="reflect")], PICTURE, {"p": np.array([0, 0, 2, 1, 0, 0, 1, 3])}),
    "slice": (
        [node("Slice", "x s e a t", "y")],
        PICTURE,
        {"s": np.array([-6, 1]), "e": np.array([2**31, -1]), "a": np.array([2, 3]), "t": np.array([2, 1])},
    ),
    "split": (
        [node("Split", "x s", "a b", axis=1), node("Concat", "b a", "y", axis=2)],
        PICTURE,
        {"s": np.array([2, 2])},
    ),
    "gather": ([node("Gather", "x i", "y", axis=2)], PICTURE, {"i": np.array([[3, 0], [-1, 2]])}),
    "gather one": ([node("Gather", "x i", "y", axis=1)], PICTURE, {"i": np.array(2)}),
    "tile": ([node("Tile", "x r", "a"), node("Transpose", "a", "y")], PICTURE, {"r": np.array([1, 2, 1, 1])}),
    "shapes": (
        [node("Unsqueeze", "x a", "u"), node("Reshape", "u r", "q"), node("Squeeze", "q a", "y")],
        PICTURE,
        {"a": np.array([0]), "r": np.array([1, 6, -1])},
    ),
    "depth to space": ([node("DepthToSpace", "x", "y", blocksize=2)], PICTURE, {}),
    "space to depth": ([node("SpaceToDepth", "x", "y", blocksize=2)], (1, 4, 6, 8), {}),
    "attention": ([node("Transpose", "x", "t", perm=[0, 1, 3, 2]), node("MatMul", "x t", "y")], PICTURE, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    nodes, shape, weights = OPERATORS[name]
    graph = Graph.from_model(model(nodes, shape, opset=20 if name in ("gelu",) else 17, **weights))
    same(graph)


RESIZES = [
    {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "cubic", "coordinate_transformation_mode": "half_pixel"},
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"},
    {"mode": "nearest", "coordinate_transformation_mode": "align_corners", "nearest_mode": "round_prefer_ceil"},
    {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "ceil"},
]


@pytest.mark.parametrize("attrs", RESIZES)
def test_resizes(attrs: dict[str, Any]) -> None:
    for sizes in ((1, 4, 18, 16), (1, 4, 5, 13)):
        nodes = [node("Resize", "x - - s", "y", **attrs)]
        same(Graph.from_model(model(nodes, PICTURE, s=np.array(sizes))))
    same(Graph.from_model(model([node("Resize", "x - s", "y", **attrs)], PICTURE, s=np.float32([1, 1, 2, 3]))))


def test_a_transformer_before_and_after_folding() -> None:
    for fold in (False, True):
        same(transformer(fold=fold))


@pytest.mark.parametrize("name", ["A", "B", "C", "D"])
def test_real_networks(name: str) -> None:
    try:
        graph = Graph.load(testbed.network(name), testbed.INPUTS[name])
    except testbed.Missing as error:
        pytest.skip(str(error))
    graph.fold()
    # C's map is nearly black on noise, so its standard deviation is no measure; its logits' order of magnitude is.
    same(graph, noise=0.1 if name == "C" else 5e-4)


@pytest.mark.parametrize("name", ["tinydepth", "tinydepth-conv"])
def test_depth_networks(name: str) -> None:
    same(Graph.load(networks.path(name)))


def test_parameters_have_names_and_come_back() -> None:
    graph = Graph.from_model(conv_relu6_depthwise())
    module = to_module(graph)
    assert set(module.names) == {"w1", "b1", "w2", "b2"}  # the bounds of the Clip are settings
    assert {name for name, _ in module.named_parameters()} == set(module.names.values())
    with torch.no_grad():
        module.get_parameter(module.names["w1"]).mul_(2.0)
    back = module.to_graph()
    assert np.array_equal(back.weights["w1"], 2 * graph.weights["w1"])
    assert np.array_equal(back.weights["w2"], graph.weights["w2"])
    feed = feed_of(graph)
    assert distance(Session(back, threads=1).run(feed), run(module, graph, feed)) < FLOAT_NOISE


def test_it_trains() -> None:
    graph = Graph.from_model(conv_relu6_depthwise())
    module, x = to_module(graph), torch.from_numpy(random(*graph.inputs[0].shape))
    goal = torch.zeros_like(module(x))
    optimiser = torch.optim.Adam(module.parameters(), 0.01)
    losses = []
    for _ in range(20):
        loss = (module(x) - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("bits", [8, 4])
def test_fake_quantised_it_is_the_simulation(bits: int) -> None:
    """But for sums that float32 orders differently: those may fall on the other side of a rounding border."""
    recipe = Recipe("t", (Calibrate(activations="minmax"), Round()))
    done = quantize(Graph.from_model(conv_relu6_depthwise()), recipe, samples(), threads=1)
    module = to_module(done.graph, done.grids, done.codes)
    feed = feed_of(done.graph)
    wanted = Session(done.to_qdq(), optimize=False, threads=1).run(feed)["y"]
    steps = np.abs(run(module, done.graph, feed)["y"] - wanted) / done.grids["y"].scale
    assert np.mean(steps < 0.5) > 0.99 and steps.max() < 1.5


def test_blocks_and_channels_of_weights() -> None:
    recipe = Recipe.load("int4-block128")
    graph = Graph.from_model(model([node("MatMul", "x w", "y")], (1, 5, 256), w=random(256, 8)))
    done = quantize(graph, recipe, random(4, 5, 256), threads=1)
    feed = feed_of(done.graph)
    wanted = Session(done.to_qdq(), optimize=False, threads=1).run(feed)
    assert distance(wanted, run(to_module(done.graph, done.grids, done.codes), done.graph, feed)) < 1e-3


def test_refusals() -> None:
    graph = Graph.from_model(model([node("Relu", "x", "y")], (2, 8)))
    graph.nodes = [Node("Whatever", ["x"], ["y"], "odd")]
    with pytest.raises(InputError, match=r"operator of 'odd' must be one of Abs, Add.*Received Whatever\."):
        to_module(graph)
    graph.nodes = [Node("HadamardRotate", ["x"], ["y"], "own", domain="leadline")]
    with pytest.raises(InputError, match=r"Received leadline\.HadamardRotate"):
        to_module(graph)
    crop = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
    nodes = [node("Resize", "x - - s", "y", name="up", **crop)]
    resized = Graph.from_model(model(nodes, PICTURE, s=np.array([1, 4, 18, 16])))
    with pytest.raises(InputError, match=r"Resize 'up': torch must have this interpolation\. Received coord"):
        to_module(resized)
    grid = Grid(
        np.ones((2, 2), np.float32), np.zeros((2, 2), np.int32), Scheme(granularity="block", axis=1, block_size=4)
    )
    with pytest.raises(InputError, match=r"the grid of activation 'x' must not be per block\. Received one per block"):
        to_module(Graph.from_model(model([node("Relu", "x", "y")], (2, 8))), {"x": grid})


RECIPES = ("w8a8", "w4a8", "minmax-w8a8", "quartdepth-w4a8", "quantvggt-w4a4", "weight-only-int8")


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_tensor_is_the_simulations(recipe: str) -> None:
    """Fed with the simulation's own tensors, each node gives its output, or the next code where float32 sums disagree
    about a value between two."""
    graph = transformer()
    done = quantize(graph, recipe, random(6, *graph.inputs[0].shape[1:]), threads=1)
    check_nodes(done, feed_of(done.graph))


@pytest.mark.parametrize("name", ["tinydepth", "tinydepth-conv"])
def test_depth_networks_simulated(name: str) -> None:
    graph = Graph.load(networks.path(name))
    done = quantize(graph, "minmax-w8a8", random(3, *graph.inputs[0].shape[1:]), threads=1)
    check_nodes(done, feed_of(done.graph))
    check_whole(done, feed_of(done.graph))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "D"])
def test_real_networks_simulated(name: str) -> None:
    try:
        graph = Graph.load(testbed.network(name), testbed.INPUTS[name])
    except testbed.Missing as error:
        pytest.skip(str(error))
    done = quantize(graph, "minmax-w8a8", random(3, *graph.inputs[0].shape[1:]), threads=1)
    check_nodes(done, feed_of(done.graph))
    check_whole(done, feed_of(done.graph))


def check_nodes(done: Quantized, feed: dict[str, np.ndarray]) -> None:
    module = to_module(done)
    assert isinstance(module, SimulatedModule)
    written = [name for node in done.graph.nodes for name in node.outputs if name]
    proto = done.to_qdq()
    made = {name for node in proto.graph.node for name in node.output}
    seen = {name: f"{name}.dq" if f"{name}.dq" in made else name for name in [*feed, *written]}
    seen = {name: read for name, read in seen.items() if read in made or name in feed}
    wanted = sorted({read for read in seen.values() if read in made})
    outputs = Session(proto, outputs=wanted, optimize=False, threads=1).run(feed) | feed
    values = {name: torch.from_numpy(outputs[read]) for name, read in seen.items()} | module._fixed
    compared = 0
    with torch.no_grad():
        values |= {name: module._seen(name, getattr(module, own)) for name, own in module.names.items()}
        for call in module._calls:
            found = call.function(*(None if name is None else values[name] for name in call.inputs))
            for name, tensor in zip(call.outputs, found if isinstance(found, (tuple, list)) else (found,), strict=True):
                if name not in seen:  # in front of a clamp that the simulation leaves to the grid
                    values[name] = module._seen(name, tensor)
                    continue
                if values[name].dtype != torch.float32:
                    continue
                compared += 1
                want = values[name]
                noise = 1e-4 * float(want.abs().max())  # hundreds of roundings of 6e-8 each
                if name not in done.grids or done.grids[name].scheme.granularity == "token":
                    near = 1.0 if name not in done.grids else 1e4
                    assert (module._seen(name, tensor) - want).abs().max() <= near * noise, name
                    continue
                scale = float(done.grids[name].scale.max())
                steps = (module._seen(name, tensor) - want).abs() / scale
                apart = steps > 1e-3
                assert steps.max() < 1.01 + noise / scale, name
                position = (tensor / scale)[apart]  # only where the value lies between two codes
                assert (
                    apart.sum() == 0
                    or done.grids[name].scale.size > 1
                    or (((position - position.floor()) - 0.5).abs().max() < 2 * noise / scale)
                ), name
    assert compared > 0.6 * len(written)


def check_whole(done: Quantized, feed: dict[str, np.ndarray]) -> None:
    """The module is nearer to the simulation than the simulation is to the float network, by 10 dB: codes that
    float32 sums leave between two change what is behind them."""
    simulated = Session(done.to_qdq(), optimize=False, threads=1).run(feed)
    plain = Session(done.graph, threads=1).run(feed)
    found = run(to_module(done), done.graph, feed)
    for name, want in simulated.items():
        lost = np.square(found[name] - want, dtype=np.float64).mean()
        assert lost < 0.1 * np.square(plain[name] - want, dtype=np.float64).mean(), name


def test_a_module_is_not_made_of_half_a_network():
    nodes = [node("MatMul", "x w", "h"), node("NonZero", "h", "n"), node("Cast", "n", "y", to=1)]
    graph = Graph.from_model(model(nodes, (2, 8), w=random(8, 4)))
    with pytest.raises(InputError, match=r"a module takes fixed shapes alone: .* must end before NonZero"):
        to_module(graph)
    assert isinstance(to_module(graph.front()), GraphModule)
