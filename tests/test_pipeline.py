"""The verb: what it takes, that it repeats itself, and that the files say exactly what the run found."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from data_samples import Tensor, picture, refused
from leadline import pipeline
from leadline.affine import quantize as to_codes
from leadline.data import Data, Preprocess, load_samples
from leadline.export import encodings, qdq
from leadline.graph import Graph
from leadline.graph.operators import moved_from
from leadline.recipe import Calibrate, Override, Recipe, Round
from small_networks import (
    SHAPE,
    conv_relu_conv,
    draw,
    gemm_relu_gemm,
    graph,
    outputs,
    quantized,
    residual,
    samples,
    steps,
)

MINMAX = steps(Calibrate("minmax", "minmax"), Round())
FILES = ["model.encodings", "model.encodings.onnx", "model.fp32.onnx", "model.qdq.onnx", "run.json"]


def same(a, b) -> bool:
    return (
        a.grids == b.grids
        and a.codes.keys() == b.codes.keys()
        and all(np.array_equal(a.codes[name], b.codes[name]) for name in a.codes)
    )


@pytest.fixture(scope="module")
def reference():
    return quantized(conv_relu_conv(skew=False), MINMAX)


DATA = {
    "array": lambda data: data,
    "dict": lambda data: {"x": data},
    "list": lambda data: list(data),
    "list of dicts": lambda data: [{"x": sample[None]} for sample in data],
    "generator": lambda data: (sample[None] for sample in data),
    "DLPack": lambda data: Tensor(data),
    "list of DLPack": lambda data: [Tensor(sample) for sample in data],
    "Samples": lambda data: load_samples(data, graph(conv_relu_conv()).inputs),
}


@pytest.mark.parametrize("form", DATA)
def test_data_enters_in_any_form(form, reference):
    assert same(quantized(conv_relu_conv(skew=False), MINMAX, DATA[form](samples())), reference)


def test_data_enters_as_files(tmp_path, reference):
    np.save(tmp_path / "data.npy", samples())
    np.savez(tmp_path / "data.npz", x=samples())
    for name in ("data.npy", "data.npz"):
        assert same(quantized(conv_relu_conv(skew=False), MINMAX, tmp_path / name), reference)
        assert same(quantized(conv_relu_conv(skew=False), MINMAX, str(tmp_path / name)), reference)


def test_networks_and_recipes_enter_in_any_form(tmp_path, reference):
    onnx.save(conv_relu_conv(skew=False), str(tmp_path / "net.onnx"))
    MINMAX.save(tmp_path / "mine.toml")
    for network in (tmp_path / "net.onnx", str(tmp_path / "net.onnx"), Graph.load(tmp_path / "net.onnx")):
        for recipe in (MINMAX, tmp_path / "mine.toml", str(tmp_path / "mine.toml")):
            assert same(pipeline.quantize(network, recipe, samples()), reference)
    assert pipeline.quantize(tmp_path / "net.onnx", "w8a8", samples()).recipe == Recipe.load("w8a8")


def test_samples_settle_the_shapes_that_a_file_leaves_open(tmp_path):
    proto = conv_relu_conv()
    shape = proto.graph.input[0].type.tensor_type.shape
    for axis, name in ((0, "n"), (2, "h"), (3, "w")):
        shape.dim[axis].dim_param = name
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(proto, str(tmp_path / "net.onnx"))
    q = pipeline.quantize(tmp_path / "net.onnx", MINMAX, samples(4, (1, 3, 20, 16)))
    assert q.graph.inputs[0].shape == (1, 3, 20, 16)


def test_pictures_and_the_recipe_s_preprocessing(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    plain = quantized(conv_relu_conv(), MINMAX, tmp_path)
    centred = quantized(conv_relu_conv(), MINMAX.changed(data={"mean": 0.5, "std": 0.25}), tmp_path)
    mine = quantized(conv_relu_conv(), MINMAX, Data(tmp_path, preprocess=Preprocess(mean=0.5, std=0.25)))
    assert same(centred, mine) and not same(plain, mine)
    assert plain.grids["x"].lo >= 0 > mine.grids["x"].lo


def test_a_quarter_is_held_out_unless_given():
    q = quantized(conv_relu_conv(), MINMAX)
    assert (q.calibrated, len(q.held_out)) == (9, 3)
    mine = load_samples(samples(2, seed=5), q.graph.inputs)
    q = quantized(conv_relu_conv(), MINMAX, held_out=mine)
    assert q.calibrated == 12 and q.held_out.labels == mine.labels


def test_one_sample_is_enough():
    with pytest.warns(UserWarning, match="one sample: the artefact is checked on what it was calibrated on"):
        q = quantized(conv_relu_conv(), "w8a8", samples(1))
    assert q.calibrated == len(q.held_out) == 1
    assert repr(q).startswith("Quantized by w8a8 for onnxruntime: ") and len(repr(q)) < 300


@pytest.mark.parametrize(("given", "received"), [(object(), "a object"), ("net.pt2", "'net.pt2'")])
def test_networks_that_are_no_graph_come_with_the_way_to_one(given, received):
    with refused("network must be a Graph, the path of an ONNX file, or a PyTorch module", received):
        pipeline.quantize(given, "w8a8", samples())


def floats(q) -> tuple[set[str], set[str]]:
    """Weights and activations without a grid."""
    weights = {layer.weight for layer in q.graph.layers() if layer.weight not in q.grids}
    return weights, {name for node in q.graph.nodes for name in node.outputs if name not in q.grids}


def test_what_is_excluded_stays_float():
    whole = quantized(residual(), MINMAX)
    layers = whole.graph.layers()
    for layer in layers:
        made = quantized(residual(), MINMAX, exclude=layer.name)
        assert floats(made)[0] == {layer.weight} and layer.output in floats(made)[1]
        assert made.grids.keys() < whole.grids.keys() and Recipe.from_toml(made.recipe.to_toml()) == made.recipe
    everything = quantized(residual(), MINMAX, exclude=[layers[0].name, layers[-1].output], overrides=[])
    assert layers[0].weight not in everything.grids and layers[-1].output not in everything.grids
    assert layers[-1].weight in everything.grids


def test_names_with_brackets_are_names_before_they_are_patterns():
    assert Override("blocks[0].conv").matches("blocks[0].conv") and not Override("blocks[0].conv").matches("blocks")


@pytest.mark.parametrize("exclude", ["nowhere", ["relu", "no*"]], ids=str)
def test_what_is_excluded_must_be_there(exclude):
    with refused("[quantize] exclude must name a layer or an activation of"):
        quantized(conv_relu_conv(), MINMAX, exclude=exclude)


def test_overrides_of_a_call_go_before_the_recipe_s():
    recipe = MINMAX.changed(overrides=(Override(weights={"bits": 6}),))
    table = {"pattern": "*", "kinds": ["first"], "weights": {"bits": 4}}
    for overrides in ([table], [Override(kinds=("first",), weights={"bits": 4})]):
        made = quantized(residual(), recipe, overrides=overrides)
        assert [made.grids[layer.weight].scheme.bits for layer in made.graph.layers()][:2] == [4, 6]
    with refused("[Recipe] overrides[0] knows only the keys"):
        quantized(residual(), MINMAX, overrides=[{"bits": 4}])
    with refused("bits"):
        quantized(residual(), MINMAX, target="hexagon", overrides=[{"activations": {"bits": 3}}])


@pytest.mark.parametrize("recipe", ["w8a8", "int4-block128"])
def test_runs_repeat_themselves_on_any_number_of_threads(recipe):
    network = graph(residual())
    one, again, two = (pipeline.quantize(network, recipe, samples(), threads=t) for t in (1, 1, 2))
    assert same(one, again) and same(one, two)
    assert one.to_qdq().SerializeToString() == two.to_qdq().SerializeToString()


def test_the_seed_decides_which_samples_are_used():
    def used(seed):
        q = quantized(conv_relu_conv(), MINMAX, Data(samples(40), num_samples=8, seed=seed))
        assert q.calibrated + len(q.held_out) == 8
        return q.held_out.labels, float(q.grids["x"].scale)

    assert used(0) == used(0) != used(1)


TYPES = {  # recipe -> type of the convolutions' weights, of the linear ones', of activations
    "w8a8": ("INT8", "INT8", "UINT8"),
    "adaround-w8a8": ("INT8", "INT8", "UINT8"),
    "w4a8": ("INT4", "INT4", "UINT8"),
    "w4a4": ("INT4", "INT4", "UINT8"),  # 4-bit activations travel as 8 bits
    "minmax-w8a8": ("INT8", "INT8", "UINT8"),
    "w8a16": ("INT8", "INT8", "UINT16"),
    "weight-only-int8": ("INT8", "INT8", None),
    "int4-block128": ("INT8", "INT4", None),
}


SIMULATED = ["quantvggt-w4a4", "quartdepth-w4a4", "quartdepth-w4a8"]


def test_every_shipped_recipe_is_tested():
    assert sorted([*TYPES, *SIMULATED]) == Recipe.names()


@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulation_says_so_and_writes_no_encodings(name, tmp_path):
    q = quantized(residual(), name)
    assert q.limits
    q.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model.fp32.onnx", "model.qdq.onnx", "run.json"]
    data = samples(3, seed=8)
    wanted = outputs(graph(residual()), data)["y"]
    got = outputs(tmp_path / "model.qdq.onnx", data, optimize=False)["y"]
    assert 0 < np.square(wanted - got).sum() < np.square(wanted).sum() / 10


@pytest.fixture(scope="module", params=TYPES)
def run(request, tmp_path_factory):
    """A run of every shipped recipe on a network with convolutions and linear layers, and the folder it saved."""
    q = quantized(residual(), request.param)
    folder = tmp_path_factory.mktemp(request.param)
    q.save(folder)
    return request.param, q, folder


def test_every_recipe_gives_five_files_and_nothing_else(run):
    assert sorted(os.listdir(run[2])) == FILES


def test_every_artefact_runs_and_stays_close(run):
    folder = run[2]
    data = samples(3, seed=8)
    wanted = outputs(graph(residual()), data)["y"]
    got = outputs(folder / "model.qdq.onnx", data, optimize=False)["y"]
    signal, noise = np.square(wanted).sum(), np.square(wanted - got).sum()
    # 15 dB: nine calibration samples of noise, 4 bits at worst; 9 dB where activations have 4 bits as well
    assert 0 < noise < signal / (8 if run[0] == "w4a4" else 30)
    outputs(folder / "model.qdq.onnx", data)
    np.testing.assert_allclose(outputs(folder / "model.fp32.onnx", data)["y"], wanted, rtol=1e-3, atol=1e-4)


def test_plain_onnxruntime_loads_what_was_written(run):
    for name in ("model.qdq.onnx", "model.fp32.onnx", "model.encodings.onnx"):
        onnx.checker.check_model(str(run[2] / name), full_check=True)
        session = ort.InferenceSession(str(run[2] / name), providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == ["x"] and [o.name for o in session.get_outputs()] == ["y"]


def test_integers_have_the_types_that_the_recipe_promises(run):
    name, _, folder = run
    conv, linear, activation = TYPES[name]
    model = onnx.load(str(folder / "model.qdq.onnx"))
    constants = {t.name: t for t in model.graph.initializer}
    kind = {t: onnx.TensorProto.DataType.Name(constants[t].data_type) for t in constants}
    points = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {kind[point] for point in points} == ({activation} if activation else set())
    counts: dict[str, int] = Counter()
    for tensor in constants.values():
        if len(tensor.dims) > 1:
            counts[kind[tensor.name]] += int(np.prod(tensor.dims))
    convolutions, linears = 8 * 27 + 8 * 72, 128 * 288 + 6 * 128
    ends = 8 * 27 + 6 * 128
    if name in ("w4a8", "w4a4"):
        assert counts == {"INT8": ends, "INT4": convolutions + linears - ends}
    elif conv == linear:
        assert counts[conv] == convolutions + linears
    else:
        assert counts["INT8"] == convolutions and counts["INT4"] >= linears
    assert counts.get("FLOAT", 0) < 2000  # scales of blocks, no weight
    assert os.path.getsize(folder / "model.qdq.onnx") < os.path.getsize(folder / "model.fp32.onnx") / 2.5


def test_read_back_the_artefact_is_exactly_the_run(run):
    _, q, folder = run
    back = qdq.read(folder / "model.qdq.onnx")
    assert back.grids == q.grids
    for name in q.codes:
        assert np.array_equal(back.codes[name], q.codes[name])


def test_the_encodings_are_the_run_s_grids(run):
    _, q, folder = run
    wanted = encodings.Encodings.from_grids(q.encoded_graph(), q.grids).grids
    assert wanted.keys() == q.grids.keys()
    back = encodings.read(folder / "model.encodings", Graph.load(folder / "model.encodings.onnx")).grids
    moved = {name for name, source in moved_from(q.graph).items() if wanted.get(name) == wanted.get(source)}
    # 1.0.0 has no biases, and takes what moved data shares from its source
    assert back.keys() == {name for name, grid in wanted.items() if grid.scheme.bits < 32} - moved
    for name, grid in back.items():
        assert grid == wanted[name], name
        assert np.array_equal(grid.zero_point, q.grids[name].zero_point)
        assert np.array_equal(grid.scale, q.grids[name].scale)


def test_rounding_the_encodings_network_gives_the_artefact_s_integers(run):
    _, q, folder = run
    encoded = Graph.load(folder / "model.encodings.onnx")
    back = qdq.read(folder / "model.qdq.onnx")
    assert q.codes
    for name in q.codes:
        assert np.array_equal(to_codes(encoded.weights[name], q.grids[name]), back.codes[name]), name


def test_the_networks_beside_the_artefact_have_its_tensor_names(run):
    _, q, folder = run
    network = Graph.load(folder / "model.fp32.onnx")
    assert set(q.grids) <= set(network.weights) | set(network.values)
    assert {layer.name for layer in network.layers()} == {layer.name for layer in q.graph.layers()}


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
def test_every_version_of_encodings_can_be_asked_for(version, tmp_path):
    q = quantized(gemm_relu_gemm(), MINMAX)
    q.save(tmp_path, encodings_version=version)
    assert encodings.read_with_version(tmp_path / "model.encodings")[1] == version


def test_an_unknown_version_of_encodings_writes_nothing(tmp_path, reference):
    with refused("version must be one of", "'3'"):
        reference.save(tmp_path / "out", encodings_version="3")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
@pytest.mark.parametrize("writer", ["leadline.export.qdq.save", "leadline.export.encodings.Encodings.write"])
def test_saving_is_all_or_nothing(writer, error, tmp_path, reference, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.fp32.onnx").write_bytes(b"earlier")
    (out / "notes.txt").write_bytes(b"mine")

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(writer, broken)
    with pytest.raises(error):
        reference.save(out)
    assert sorted(os.listdir(out)) == ["model.fp32.onnx", "notes.txt"]
    assert (out / "model.fp32.onnx").read_bytes() == b"earlier"
    monkeypatch.undo()
    reference.save(out)
    assert sorted(os.listdir(out)) == sorted([*FILES, "notes.txt"]) and (out / "notes.txt").read_bytes() == b"mine"


def test_what_was_wrong_with_the_data_is_said(tmp_path):
    with refused("x"):
        quantized(conv_relu_conv(), MINMAX, samples(4, (1, 3, 10, 12)))
    with refused("at least one sample"):
        quantized(conv_relu_conv(), MINMAX, [])
    for value in (np.nan, np.inf, -np.inf):
        bad = samples(4)
        bad[2, 1, 0, 3] = value
        with refused("x", "sample 2"):
            quantized(conv_relu_conv(), MINMAX, bad, held_out=load_samples(samples(1), graph(conv_relu_conv()).inputs))
    with refused("recipe must be one of"):
        quantized(conv_relu_conv(), "w9a9")


def test_two_inputs_and_two_outputs():
    proto = conv_relu_conv()
    other = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, SHAPE)
    proto.graph.input.append(other)
    proto.graph.node.append(onnx.helper.make_node("Mul", ["z", "gain"], ["second_output"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(draw(5, 1, 3, 1, 1), "gain"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("second_output", onnx.TensorProto.FLOAT, SHAPE))
    q = quantized(proto, "w8a8", {"x": samples(), "z": samples(seed=1)})
    assert {"x", "z"} <= set(q.grids)
    verification = q.verify(threads=1)
    assert [score.name for score in verification.outputs] == ["y", "second_output"]
    assert all(score.sqnr > 15 for score in verification.outputs)
