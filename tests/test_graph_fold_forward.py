"""Graph.fold into the layers behind a constant factor or term: exact at every border, shared weights, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_models import load_same, model, node, ops, random
from leadline.graph import Graph

X = (1, 4, 8, 8)


def positive(*shape):
    return np.abs(random(*shape)) + np.float32(0.3)


def chain(*nodes, shape=X, outputs="y", **weights):
    """Fold x -> HardSwish -> h -> nodes; checks that the outputs stay and that a second fold finds nothing."""
    graph = load_same(model([node("HardSwish", "x", "h"), *nodes], shape, outputs, **weights), fold=True)
    assert graph.copy().fold() == []
    return graph


SHAPES = [(), (1,), (4, 1, 1), (1, 4, 1, 1)]
CONVOLUTIONS = {
    "conv": ("Conv", (6, 4, 3, 3), {}),
    "grouped": ("Conv", (6, 2, 3, 3), {"group": 2}),
    "depthwise": ("Conv", (8, 1, 3, 3), {"group": 4}),
    "transpose": ("ConvTranspose", (4, 6, 2, 2), {}),
    "grouped transpose": ("ConvTranspose", (4, 3, 2, 2), {"group": 2}),
}


@pytest.mark.parametrize("op_type", ["Mul", "Div"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_factor_goes_into_the_input_channels(kind, shape, op_type):
    reader, weight, attrs = CONVOLUTIONS[kind]
    nodes = [node(op_type, "h k", "m"), node(reader, "m w", "y", pads=[1, 1, 1, 1], **attrs)]
    assert ops(chain(*nodes, w=random(*weight), k=-positive(*shape))) == ["HardSwish", reader]


@pytest.mark.parametrize("op_type", ["Add", "Sub"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["conv", "grouped", "depthwise"])
def test_a_term_goes_into_the_bias_where_nothing_is_padded(kind, shape, bias, first, op_type):
    reader, weight, attrs = CONVOLUTIONS[kind]
    weights = {"w": random(*weight), "k": random(*shape)} | ({"b": random(weight[0])} if bias else {})
    nodes = [
        node(op_type, "k h" if first else "h k", "m"),
        node(reader, "m w" + " b" * bias, "y", strides=[2, 2], dilations=[2, 2], **attrs),
    ]
    assert ops(chain(*nodes, **weights)) == ["HardSwish", reader]


@pytest.mark.parametrize(
    ("reader", "attrs"),
    [
        ("Conv", {"pads": [1, 1, 1, 1]}),
        ("Conv", {"pads": [0, 0, 0, 1]}),
        ("Conv", {"auto_pad": "SAME_UPPER"}),
        ("ConvTranspose", {}),
    ],
)
def test_a_term_before_padding_stays_and_its_factor_goes(reader, attrs):
    nodes = [node("Mul", "h k", "m"), node("Add", "m a", "s"), node(reader, "s w", "y", **attrs)]
    weights = {"w": random(4, 4, 3, 3), "k": positive(4, 1, 1), "a": random()}
    graph = chain(*nodes, **weights)
    assert ops(graph) == ["HardSwish", "Add", reader]
    constant = next(graph.weights[name] for name in graph.nodes[1].inputs if name in graph.weights)
    assert np.allclose(constant, weights["a"] / weights["k"], rtol=1e-6)


def test_a_term_goes_before_the_factor_in_front_of_it():
    nodes = [node("Mul", "h k", "m"), node("Add", "m a", "s"), node("Conv", "s w", "y", name="c")]
    proto = model([node("HardSwish", "x", "h"), *nodes], X, w=random(6, 4, 3, 3), k=positive(), a=random(4, 1, 1))
    graph = Graph.from_model(proto)
    assert [line.split()[:2] for line in graph.fold()] == [["c:", "Add"], ["c:", "Mul"]]
    assert ops(load_same(proto, fold=True)) == ["HardSwish", "Conv"]


@pytest.mark.parametrize("pads", [0, 1])
def test_batch_norm_before_a_convolution(pads):
    norm = {name: positive(4) for name in ("g", "b", "u", "v")}
    nodes = [node("BatchNormalization", "h g b u v", "n"), node("Conv", "n w", "y", pads=[pads] * 4)]
    graph = chain(*nodes, w=random(6, 4, 3, 3), **norm)
    assert ops(graph) == ["HardSwish", *["Add"] * pads, "Conv"]


def test_a_subtraction_from_a_constant_turns_the_weight():
    nodes = [node("Sub", "k h", "m"), node("Conv", "m w", "y", pads=[1, 1, 1, 1])]
    assert ops(chain(*nodes, w=random(6, 4, 3, 3), k=random(4, 1, 1))) == ["HardSwish", "Add", "Conv"]


@pytest.mark.parametrize(
    ("pool", "attrs", "term"),
    [
        ("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, True),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2]}, True),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, False),
        ("GlobalAveragePool", {}, True),
        ("GlobalMaxPool", {}, True),
    ],
)
def test_through_pooling(pool, attrs, term):
    nodes = [node("Mul", "h k", "m"), node("Add", "m a", "s"), node(pool, "s", "p", **attrs), node("Conv", "p w", "y")]
    graph = chain(*nodes, w=random(6, 4, 1, 1), k=positive(4, 1, 1), a=random(4, 1, 1))
    assert ops(graph) == ["HardSwish", *["Add"] * (not term), pool, "Conv"]


def test_a_negative_factor_does_not_pass_a_maximum():
    nodes = [node("Mul", "h k", "m"), node("MaxPool", "m", "p", kernel_shape=[2, 2]), node("Conv", "p w", "y")]
    graph = chain(*nodes, w=random(6, 4, 1, 1), k=np.array([1, -1, 2, 3], np.float32).reshape(4, 1, 1))
    assert ops(graph) == ["HardSwish", "Mul", "MaxPool", "Conv"]


def test_through_flatten_and_transpose_into_a_linear_layer():
    pooled = [node("Mul", "h k", "m"), node("GlobalAveragePool", "m", "p"), node("Flatten", "p", "f")]
    graph = chain(*pooled, node("Gemm", "f w b", "y"), k=random(4, 1, 1), w=random(4, 3), b=random(3))
    assert ops(graph) == ["HardSwish", "GlobalAveragePool", "Reshape", "Gemm"]
    tokens = [
        node("Add", "h a", "s"), node("Mul", "s k", "m"), node("Reshape", "m dims", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1]), node("MatMul", "t w", "y"),
    ]  # fmt: skip
    weights = {"k": random(4, 1, 1), "a": random(4, 1, 1), "w": random(4, 3), "dims": np.array([1, 4, 64])}
    assert not {"Mul", "Add"} & set(ops(chain(*tokens, **weights)))


def test_channels_spread_over_the_features_stay():
    nodes = [node("Mul", "h k", "m"), node("Flatten", "m", "f"), node("Gemm", "f w", "y")]
    weights = {"w": random(256, 3)}
    assert "Mul" in ops(chain(*nodes, k=random(4, 1, 1), **weights))
    assert "Mul" not in ops(chain(*nodes, k=random(1), **weights))


def test_squeeze_and_excitation_lets_the_factor_pass():
    """The gate sees the scaled tensor through its own layer; the product carries the factor on."""
    nodes = [
        node("Mul", "h k", "m"), node("Add", "m a", "s"), node("GlobalAveragePool", "s", "p"),
        node("Conv", "p v", "g"), node("Sigmoid", "g", "i"), node("Mul", "s i", "z"), node("Conv", "z w", "y"),
    ]  # fmt: skip
    graph = chain(*nodes, k=random(4, 1, 1), a=random(), v=random(4, 4, 1, 1), w=random(6, 4, 1, 1))
    assert ops(graph) == ["HardSwish", "Add", "GlobalAveragePool", "Conv", "Sigmoid", "Mul", "Conv"]


def test_a_product_of_two_scaled_tensors_stays():
    nodes = [
        node("Mul", "h k", "m"), node("MaxPool", "m", "p", kernel_shape=[1, 1]), node("Mul", "m p", "z"),
        node("Conv", "z w", "y"),
    ]  # fmt: skip
    graph = chain(*nodes, k=positive(4, 1, 1), w=random(6, 4, 1, 1))
    assert ops(graph) == ["HardSwish", "Mul", "MaxPool", "Mul", "Conv"]
    square = [node("Mul", "h k", "m"), node("Mul", "m m", "z"), node("Conv", "z w", "y")]
    assert ops(chain(*square, k=positive(4, 1, 1), w=random(6, 4, 1, 1))) == ["HardSwish", "Mul", "Mul", "Conv"]


@pytest.mark.parametrize("other", ["y m", "y z"])
def test_any_other_reader_keeps_the_factor(other):
    nodes = [node("Mul", "h k", "m"), node("Conv", "m w", "y"), node("Sigmoid", "m", "z")]
    graph = chain(*nodes, outputs=other, k=random(4, 1, 1), w=random(6, 4, 1, 1))
    assert "Mul" in ops(graph)


def test_a_zero_factor_goes_only_where_no_term_has_to_be_divided():
    k = np.array([0, 1, 2, 3], np.float32).reshape(4, 1, 1)
    plain = [node("Mul", "h k", "m"), node("Conv", "m w", "y", pads=[1, 1, 1, 1])]
    assert ops(chain(*plain, k=k, w=random(6, 4, 3, 3))) == ["HardSwish", "Conv"]
    shifted = [node("Mul", "h k", "m"), node("Add", "m a", "s"), node("Conv", "s w", "y", pads=[1, 1, 1, 1])]
    assert ops(chain(*shifted, k=k, a=random(), w=random(6, 4, 3, 3))) == ["HardSwish", "Mul", "Add", "Conv"]
    tiny = np.float32(1e-30)
    assert "Mul" in ops(chain(*shifted, k=tiny, a=np.float32(1e10), w=random(6, 4, 3, 3)))


def test_shared_weights_and_constants_get_copies():
    nodes = [
        node("Mul", "h k", "m"), node("Add", "m a", "s"), node("Conv", "s w", "p", pads=[1, 1, 1, 1]),
        node("Conv", "h w", "q", pads=[1, 1, 1, 1]), node("Add", "p q", "r"), node("Sigmoid", "r", "g"),
        node("Add", "g a", "y"),
    ]  # fmt: skip
    weights = {"k": positive(), "a": random(4, 1, 1), "w": random(4, 4, 3, 3)}
    graph = chain(*nodes, **weights)
    assert sorted(ops(graph)) == sorted(["HardSwish", "Add", "Conv", "Conv", "Add", "Sigmoid", "Add"])
    first, second = (graph.weights[layer.weight] for layer in graph.layers())
    assert np.abs(first - second).max() > 0.01


def test_one_factor_into_two_layers_is_one_line():
    nodes = [
        node("Mul", "h k", "m"), node("Conv", "m w", "p", name="one"), node("Conv", "m v", "q", name="two"),
        node("Add", "p q", "y"),
    ]  # fmt: skip
    proto = model([node("HardSwish", "x", "h"), *nodes], X, k=random(), w=random(6, 4, 1, 1), v=random(6, 4, 1, 1))
    assert Graph.from_model(proto).fold() == ["one, two: Mul m"]
    load_same(proto, fold=True)


# Bounds and steps of a Slice over the axes given, and what it leaves of (1, 4, 8, 8).
SLICES = {
    "rows": ([2], [7], [2], [1], True),
    "back to front": ([-1], [-9], [3], [-2], True),
    "rows and columns": ([1, 0], [8, 100], [2, 3], [2, 1], True),
    "every channel": ([0], [4], [1], [1], True),
    "some channels": ([1], [3], [1], [1], False),
}


@pytest.mark.parametrize("case", SLICES)
@pytest.mark.parametrize("term", [False, True])
def test_a_slice_that_leaves_the_channels_alone_passes_a_factor(case, term):
    starts, ends, axes, steps, passes = SLICES[case]
    bounds = {k: np.array(v) for k, v in zip("fela", (starts, ends, axes, steps), strict=True)}
    nodes = [
        node("Mul", "h k", "m"),
        node("Add", "m c", "s"),
        node("Slice", "s f e l a", "p"),
        node("Conv", "p w", "y"),
    ]
    channels = 2 if case == "some channels" else 4
    weights = {"k": positive(4, 1, 1), "c": random(4, 1, 1) if term else np.zeros((4, 1, 1), np.float32)}
    graph = chain(*nodes, w=random(6, channels, 1, 1), **weights, **bounds)
    assert ("Mul" in ops(graph)) == (not passes)
    assert ("Add" in ops(graph)) == (not passes and term)


def test_a_slice_of_the_channels_passes_one_factor_for_all():
    nodes = [node("Mul", "h k", "m"), node("Slice", "m f e l", "p"), node("Conv", "p w", "y")]
    bounds = {"f": np.array([1]), "e": np.array([3]), "l": np.array([1])}
    assert "Mul" not in ops(chain(*nodes, k=random(), w=random(6, 2, 1, 1), **bounds))


def test_a_slice_backwards_over_the_channels():
    """All of them, in another order: the factors would go into the wrong channels. One for all may pass."""
    nodes = [node("Mul", "h k", "m"), node("Slice", "m f e l a", "p"), node("Conv", "p w", "y")]
    bounds = {"f": np.array([-1]), "e": np.array([-9]), "l": np.array([1]), "a": np.array([-1])}
    assert "Mul" in ops(chain(*nodes, k=positive(4, 1, 1), w=random(6, 4, 1, 1), **bounds))
    assert "Mul" not in ops(chain(*nodes, k=positive(), w=random(6, 4, 1, 1), **bounds))
    # Without axes the bounds are those of the first ones.
    first = {"f": np.array([0, -1]), "e": np.array([1, -9]), "a": np.array([1, -1])}
    nodes[1] = node("Slice", "m f e - a", "p")
    assert "Mul" in ops(chain(*nodes, k=positive(4, 1, 1), w=random(6, 4, 1, 1), **first))


def test_a_slice_of_tokens_behind_a_norm_passes_its_gain():
    """As a tap on a transformer's last LayerNorm: the class token goes, the rest becomes a picture."""
    nodes = [
        node("Mul", "h k", "m"), node("Add", "m b", "s"), node("Slice", "s f e l", "p"),
        node("Transpose", "p", "t", perm=[0, 2, 1]), node("Reshape", "t image", "i"), node("Conv", "i w", "y"),
    ]  # fmt: skip
    weights = {"k": positive(6), "b": random(6), "w": random(3, 6, 1, 1), "image": np.array([1, 6, 4, 2])}
    bounds = {"f": np.array([1]), "e": np.array([9]), "l": np.array([1])}
    graph = chain(*nodes, shape=(1, 9, 6), **weights, **bounds)
    assert not {"Mul", "Add"} & set(ops(graph))


STEPS = ["Mul", "Add", "Sub", "Div", "MaxPool", "GlobalAveragePool"]


@given(st.lists(st.sampled_from(STEPS), max_size=5), st.sampled_from([0, 1]), st.booleans())
def test_any_chain_keeps_its_output_and_folds_once(steps, pad, scalar):
    nodes, weights, tensor = [], {"w": random(6, 4, 3 if pad else 1, 3 if pad else 1)}, "h"
    for index, step in enumerate(steps):
        inputs, attrs = tensor, {"kernel_shape": [1, 1]} if step == "MaxPool" else {}
        if step in ("Mul", "Add", "Sub", "Div"):
            weights[f"k{index}"] = positive() if scalar else positive(4, 1, 1)
            inputs += f" k{index}"
        tensor = f"t{index}"
        nodes.append(node(step, inputs, tensor, **attrs))
    graph = chain(*nodes, node("Conv", f"{tensor} w", "y", pads=[pad] * 4), **weights)
    assert not {"Mul", "Div"} & set(ops(graph))
    assert pad or not {"Add", "Sub"} & set(ops(graph))
