"""Verification: figures that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from data_samples import refused
from graph_models import model, node
from leadline.data import load_samples
from leadline.graph.trace import bounded
from leadline.pipeline import quantize
from leadline.recipe import Calibrate, Recipe, Round
from leadline.sqnr import Sqnr
from leadline.steps.rotate import rotate_residual
from leadline.types import Scheme
from leadline.verification import verify
from small_networks import RELU, SHAPE, conv_chain, conv_relu_conv, draw, factors, graph, quantized, samples
from small_transformer import transformer


def scaled(factor, offset=0.0):
    return model(
        [node("Mul", "x f", "a"), node("Add", "a o", "y")],
        SHAPE, f=np.full((1, 3, 1, 1), factor, np.float32), o=np.full((1, 3, 1, 1), offset, np.float32),
    )  # fmt: skip


def test_identical_networks_have_the_highest_figure():
    result = verify(graph(scaled(3)), scaled(3), samples(3), threads=1)
    (score,) = result.outputs
    assert score.sqnr == score.worst == score.device == 200 and score.largest == 0
    assert score.agreement.exact == 1 and score.agreement.largest == 0
    assert all(tensor.sqnr == 200 for tensor in result.tensors)
    assert result.samples == 3


def test_onnxruntime_s_float_fusions_are_no_error_worth_mentioning():
    proto = conv_relu_conv()
    result = verify(graph(proto), graph(proto).to_model(), samples(3), threads=1)
    assert result.outputs[0].sqnr > 120  # float32 keeps 24 bits, 144 dB; sums of a hundred products lose a few


@pytest.mark.parametrize("db", [10, 40, 60])
def test_a_known_perturbation_has_its_known_figure(db):
    network = graph(scaled(1))
    result = verify(network, scaled(1 + 10 ** (-db / 20)), samples(3), threads=1)
    assert result.outputs[0].sqnr == pytest.approx(db, abs=0.05)
    assert result.outputs[0].device == pytest.approx(db, abs=0.05)


def test_the_worst_sample_and_the_largest_error():
    data = samples(3)
    data[1] *= 0.01  # an offset weighs most on the quietest sample
    result = verify(graph(scaled(1)), scaled(1, 0.125), data, threads=1).outputs[0]
    quiet, whole = ((np.square(d).mean() / 0.125**2) for d in (data[1].astype(float), data.astype(float)))
    assert result.worst == pytest.approx(10 * np.log10(quiet), abs=0.01)
    assert result.sqnr == pytest.approx(10 * np.log10(whole), abs=0.01)
    assert result.largest == pytest.approx(0.125, rel=1e-5)


def test_the_figures_are_those_of_all_samples_together():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 6, 50))
    total = Sqnr()
    for a, b in zip(x, y, strict=True):
        total.update(a, b)
    assert total.db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))
    assert total.centred_db == pytest.approx(10 * np.log10(((x - x.mean()) ** 2).sum() / ((x - y) ** 2).sum()))
    assert total.largest == np.abs(x - y).max()


def test_a_map_far_from_zero_is_judged_about_its_mean():
    x = np.linspace(99, 101, 200)
    score = Sqnr().update(x, x + np.random.default_rng(1).normal(0, 0.1, x.shape))
    assert score.db > 55 and 13 < score.centred_db < 18


@pytest.mark.parametrize("x, y, db", [([0.0], [0.0], 200), ([0.0], [1.0], -200), ([1.0], [0.0], 0), ([], [], 200)])
def test_figures_of_nothing_are_defined(x, y, db):
    score = Sqnr()
    score.update(x, y)
    assert score.db == db


def test_tensors_are_ranked_worst_first_and_name_their_operator():
    q = quantized(conv_chain(RELU), "minmax-w8a8")
    tensors = q.verify(threads=1).tensors
    assert [t.sqnr for t in tensors] == sorted(t.sqnr for t in tensors)
    assert {t.op for t in tensors} >= {"Conv", "Relu"}
    assert {t.name for t in tensors} >= {"relu", "y"}


def test_an_equalised_artefact_compares_with_the_original():
    """Inside, channels have another scale than in the original file; the output has the same."""
    proto = conv_relu_conv()
    q = quantized(proto)
    result = verify(graph(proto), q.to_qdq(), q.held_out, threads=1)
    own = q.verify(threads=1)
    assert result.outputs[0].sqnr == pytest.approx(own.outputs[0].sqnr, abs=0.5)
    inner = {t.name: t for t in result.tensors}["relu"]
    assert inner.rescaled and inner.sqnr > 15
    assert not any(t.rescaled for t in own.tensors)


def test_a_folded_factor_of_either_sign_compares_with_the_original():
    """A LayerScale between two layers is folded into the first, whose output changes channel by channel."""
    gamma = np.array([0.1, -0.2, 3, -1, 2, -0.5, 1, 0.05], np.float32).reshape(1, 8, 1, 1)
    proto = conv_chain(node("Mul", "a g", "b", name="scale"), skew=False, g=gamma)
    q = quantized(proto, "minmax-w8a8")
    result = verify(graph(proto), q.to_qdq(), q.held_out, threads=1)
    assert any(t.rescaled for t in result.tensors) and min(t.sqnr for t in result.tensors) > 15


def test_rotated_tensors_are_not_taken_for_errors():
    """Inside, the artefact's residual stream has other axes than the original's; the output is the same."""
    network, turned = transformer(), transformer()
    assert any(
        record.kept
        for record in rotate_residual(turned, load_samples(samples(2, network.inputs[0].shape), turned.inputs), 1, 1)
    )
    q = quantize(turned, "minmax-w8a8", samples(4, network.inputs[0].shape), threads=1)
    result = verify(network, q.to_qdq(), q.held_out, threads=1)
    assert len(result.moved) > 5 and not {score.name for score in result.tensors} & {*result.moved}
    assert min(score.sqnr for score in result.tensors) > 10
    assert q.verify(threads=1).moved == [] and result.to_dict()["moved"] == result.moved


def test_a_tensor_that_its_grid_breaks_is_compared():
    """A range a hundred times too small: no rotation, so the tensor is named, and where it all began."""
    q = quantized(conv_relu_conv(skew=False), "minmax-w8a8")
    broken = replace(q, grids=q.grids | {"relu": replace(q.grids["relu"], scale=q.grids["relu"].scale / 100)})
    result = broken.verify(threads=1)
    assert "relu" not in result.moved and result.tensors[0].sqnr < 10 and result.origin == "relu"


@pytest.mark.parametrize("recipe", ["minmax-w8a8", "w4a8"])
def test_without_rotated_or_scaled_weights_nothing_has_moved(recipe):
    """Four bits may break a tensor while the output is whole: it is broken, not moved."""
    q = quantized(conv_chain(RELU, skew=False), recipe)
    codes = {name: np.roll(codes, 1, 0) if name == "w1" else codes for name, codes in q.codes.items()}
    assert q.verify(threads=1).moved == [] == replace(q, codes=codes).verify(threads=1).moved


def joined(boxes, scores):
    """(1, boxes + scores, 144): boxes up to hundreds of pixels beside scores to 1, joined at the end."""
    nodes = [
        node("Conv", "x wb", "boxes", name="boxes", pads=[1, 1, 1, 1]),
        node("Conv", "x ws", "logits", name="scores", pads=[1, 1, 1, 1]),
        node("Sigmoid", "logits", "scores", name="sigmoid"),
        node("Concat", "boxes scores", "both", axis=1),
        node("Reshape", "both s", "y"),
    ]
    wb, ws = draw(1, boxes, 3, 3, 3, spread=40), draw(2, scores, 3, 3, 3)
    return model(nodes, SHAPE, wb=wb, ws=ws, s=np.array([1, boxes + scores, 144]))


def test_a_detector_s_scores_have_a_figure_of_their_own():
    result = quantized(joined(4, 6), "minmax-w8a8").verify(threads=1)
    (score,) = result.outputs
    assert [part.name for part in score.parts] == ["y[:, 0:4]", "y[:, 4:10]"]
    assert score.sqnr > 30 and score.parts[0].sqnr > 30 and score.parts[1].sqnr < 5 and not score.collapse
    (line,) = result.collapse
    assert line.startswith("y[:, 4:10]: constant, 0") and result.origin == "both"
    assert result.to_dict()["collapse"] == [line] and "y[:, 4:10]" in result._repr_html_()


def test_an_output_lost_about_its_mean_names_the_first_broken_tensor():
    """Far from zero the plain figure is high whatever becomes of the map."""
    far = conv_chain(RELU, skew=False)
    far.graph.node[-1].output[0] = "z"
    far.graph.node.append(node("Add", "z far", "y", name="far"))
    far.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(300), "far"))
    q = quantized(far, "weight-only-int8")
    relu = quantized(far, "minmax-w8a8").grids["relu"]
    result = replace(q, grids=q.grids | {"relu": replace(relu, scale=relu.scale * 300)}).verify(threads=1)
    assert result.outputs[0].sqnr > 30 and result.outputs[0].centred < 5
    assert result.collapse and result.origin == "relu"


def test_what_topk_picks_may_come_in_another_order():
    """Two that change places are the same picks."""
    nodes = [node("Reshape", "x s", "a"), node("Add", "a n", "b"), node("TopK", "b k", "v y", axis=1)]
    noise = np.zeros(432, np.float32)
    proto = model(nodes, SHAPE, s=np.array([1, 432]), n=noise, k=np.array([400]))
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    other.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(draw(5, 432, spread=0.03), "n"))
    result = verify(graph(proto), other, samples(3), threads=1)
    assert result.outputs[0].equal > 0.5 and result.collapse == []


def test_values_of_a_sigmoid_are_told_from_others():
    network = graph(joined(4, 6))
    assert bounded(network, "y", 1).tolist() == [False] * 4 + [True] * 6
    assert not bounded(network, "y", 2).any() and bounded(network, "sigmoid", 1).all()


def test_an_error_that_is_no_scale_is_not_taken_for_one():
    reference = conv_relu_conv(skew=False)
    changed = conv_chain(RELU, skew=False, b1=draw(2, 8) + 1)
    changed.graph.node[0].attribute.append(onnx.helper.make_attribute("auto_pad", "NOTSET"))
    result = verify(graph(reference), graph(changed).to_model(), samples(3), threads=1)
    assert not any(t.rescaled for t in result.tensors if t.sqnr < 10)


def test_dense_outputs_are_kept_for_a_few_samples_only():
    q = quantized(conv_relu_conv(), "minmax-w8a8")
    pictures = q.verify(samples(20), threads=1).pictures
    assert 1 <= len(pictures) <= 8
    assert pictures[0].reference.shape == pictures[0].artefact.shape == (12, 12)
    assert np.abs(pictures[0].reference - pictures[0].artefact).max() > 0


def test_networks_that_do_not_belong_together_are_refused():
    network, data = graph(conv_relu_conv()), samples(2)
    renamed = conv_relu_conv()
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "other"
    with refused("[verify]", "outputs", "'y'", "other"):
        verify(network, renamed, data)
    moved = conv_relu_conv()
    moved.graph.node[0].input[0] = moved.graph.input[0].name = "image"
    with refused("[verify]", "inputs", "x", "image"):
        verify(network, moved, data)
    smaller = model([node("Conv", "x w", "y")], SHAPE, w=draw(1, 4, 3, 3, 3))
    with refused("[verify]", "y", "(1, 4, 12, 12)", "(1, 4, 10, 10)"):
        verify(network, smaller, data)


def test_paths_are_taken_and_missing_ones_refused(tmp_path):
    q = quantized(conv_relu_conv(), "minmax-w8a8")
    q.save(tmp_path)
    fp32, artefact = tmp_path / "model.fp32.onnx", tmp_path / "model.qdq.onnx"
    own = q.verify(threads=1).to_dict()
    for kind in (str, lambda path: path):
        data = load_samples(np.concatenate([feed["x"] for feed in q.held_out]), q.graph.inputs)
        by_file = verify(kind(fp32), kind(artefact), data, threads=1)
        assert by_file.judged_by == "'model.fp32.onnx'" and by_file.to_dict() | {"judged_by": own["judged_by"]} == own
    with refused("missing.onnx"):
        verify(fp32, tmp_path / "missing.onnx", samples(1))
    with refused("missing.onnx"):
        verify(tmp_path / "missing.onnx", artefact, samples(1))


@pytest.mark.parametrize("scheme", [Scheme(4), Scheme(3), Scheme(8, granularity="axis")], ids=str)
def test_what_onnxruntime_has_no_kernels_for_runs_unfused(scheme):
    recipe = Recipe("test", (Calibrate("minmax", "minmax"), Round()), activations=scheme)
    (output,) = quantized(conv_relu_conv(), recipe).verify(threads=1).outputs
    assert output.device == output.sqnr and output.agreement.exact == 1


def test_factors_are_far_apart():
    assert factors(8).max() > 100 * factors(8).min()
