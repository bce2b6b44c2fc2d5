"""The command line: what it writes and prints, exit code 2 without a traceback for every user's mistake, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

from data_samples import picture
from graph_models import model, node
from leadline import cli
from leadline.recipe import Recipe
from small_networks import RELU, SHAPE, conv_chain, conv_relu_conv, draw, residual, samples

FILES = [
    "model.encodings", "model.encodings.onnx", "model.fp32.onnx", "model.qdq.onnx", "report.html", "report.json",
    "run.json",
]  # fmt: skip

RUN = [file for file in FILES if not file.startswith("report")]


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def leadline(monkeypatch, capsys):
    """Run a command in this process, as the console script does."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["leadline", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def spawn(*arguments, **options):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "leadline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def hint(result):
    """What a refusal prints: one line that starts with "error:", no traceback, nothing on standard output."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.err + result.out
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and result.out == ""
    return lines[0]


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(conv_relu_conv(skew=False), str(path))
    return path


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "data.npz", x=samples())
    return tmp_path / "data.npz"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def quantize(leadline, net, data, out):
    """leadline quantize with good arguments, those given instead."""

    def run(*extra, model=net, data=data, out=out):
        return leadline("quantize", model, "--data", data, "--out", out, "--threads", 1, *extra)

    return run


# -- What works -------------------------------------------------------------------------------------------------------


def test_quantize_as_a_process(net, data, out):
    done = spawn("quantize", net, "--data", data, "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(out)) == FILES
    assert "SQNR" in done.stdout and "report.html" in done.stderr


def test_the_console_script_is_the_same_program():
    script = os.path.join(os.path.dirname(sys.executable), "leadline")
    if not os.path.exists(script):
        pytest.skip("not installed as a script here")
    assert subprocess.run([script, "info", "--json"], capture_output=True, timeout=60).returncode == 0


def test_every_command_has_help(leadline):
    for command in ("quantize", "verify", "inspect", "convert", "recipe", "info"):
        result = leadline(command, "--help")
        assert result.code == 0 and "Usage" in result.out
    everything = leadline("--help")
    assert everything.code == 0 and "quantize" in everything.out


def test_quantize_says_what_the_encodings_leave_to_the_tool(quantize, out):
    shown = quantize("--recipe", "minmax-w8a8")
    assert "encodings 1.0.0 leave to Qualcomm's tool: 2 int32 bias" in shown.out
    document = json.loads((out / "report.json").read_text())["encodings"]
    assert document["version"] == "1.0.0" and document["left"] == {"int32 bias": 2}
    assert [gap["tensor"] for gap in document["gaps"]] == ["b1", "first", "b2"]  # the Relu takes first
    assert quantize("--recipe", "minmax-w8a8", "--encodings-version", "2.0.0", "--json").json["encodings"]["left"] == {}


def test_quantize_prints_json_that_is_the_report(quantize, out):
    result = quantize("--json")
    assert result.code == 0
    assert result.json == json.loads((out / "report.json").read_text())
    assert result.json["data"]["calibration"] == 9 and len(result.json["data"]["held_out"]) == 3


@pytest.mark.parametrize("name", Recipe.names())
def test_every_recipe_runs(quantize, out, name):
    result = quantize("--recipe", name, "--json")
    if name == "quantvggt-w4a4":  # this network has convolutions only, which the recipe leaves in float
        assert result.code == 2 and "have a layer to quantise" in result.err
        return
    assert result.code == (3 if result.json["verification"]["collapse"] else 0), result.err
    assert result.code == 0 or name in ("w4a4", "quartdepth-w4a4")
    simulated = name.startswith("quartdepth")
    files = [file for file in FILES if not (simulated and file.startswith("model.encodings"))]
    assert result.json["recipe"]["name"] == name and sorted(os.listdir(out)) == files
    assert bool(result.json["limits"]) == simulated


def test_the_whole_round(leadline, quantize, data, out, tmp_path):
    """quantize, verify what it wrote, inspect both artefacts, convert the encodings there and back."""
    quantize("--recipe", "minmax-w8a8")
    verified = leadline(
        "verify", out / "model.fp32.onnx", out / "model.qdq.onnx", "--data", data, "--out", tmp_path / "v", "--json"
    )
    assert verified.code == 0, verified.err
    (score,) = verified.json["verification"]["outputs"]
    assert score["name"] == "y" and score["sqnr"] > 0
    assert sorted(os.listdir(tmp_path / "v")) == ["report.html", "report.json"]
    assert json.loads((tmp_path / "v" / "report.json").read_text()) == verified.json
    assert leadline("verify", out / "model.fp32.onnx", out / "model.qdq.onnx", "--data", data).code == 0
    for file in ("model.qdq.onnx", "model.fp32.onnx", "model.encodings"):
        inspected = leadline("inspect", out / file, "--json")
        assert inspected.code == 0 and inspected.json["file"] == file
        shown = leadline("inspect", out / file)
        assert shown.code == 0 and file in shown.out
    there, back = tmp_path / "two.encodings", tmp_path / "one.encodings"
    network = out / "model.encodings.onnx"
    assert leadline("convert", out / "model.encodings", there, "--version", "2.0.0", "--model", network).code == 0
    assert json.loads(there.read_text())["version"] == "2.0.0"
    assert leadline("convert", there, back, "--version", "1.0.0", "--model", network).code == 0
    first, last = (json.loads(path.read_text()) for path in (out / "model.encodings", back))
    assert {k: last[k] for k in ("activation_encodings", "param_encodings")} == {
        k: first[k] for k in ("activation_encodings", "param_encodings")
    }
    qdq, folder = tmp_path / "theirs.onnx", tmp_path / "theirs"
    assert leadline("convert", there, qdq, "--model", network).code == 0
    assert leadline("verify", network, qdq, "--data", data).code == 0
    assert leadline("convert", out / "model.qdq.onnx", folder, "--model", out / "model.fp32.onnx").code == 0
    assert sorted(os.listdir(folder)) == RUN


@pytest.mark.parametrize(
    "given, words",
    [
        (["model.encodings", "two.encodings"], "[convert] --version must say which encodings to write"),
        (["model.encodings", "two.onnx"], "[convert] --model must give the float network that the source names"),
        (["model.encodings", "two.onnx", "--version", "2.0.0"], "--version goes with encodings, not with a QDQ target"),
        (["model.qdq.onnx", "two.encodings", "--version", "2.0.0"], "give a folder for both"),
        (["model.encodings", "two.encodings", "--version", "9"], "version must be one of 0.6.1, 1.0.0, 2.0.0"),
        (["model.encodings", "two", "--model", "gone.onnx"], "gone.onnx', which does not exist"),
        (["model.fp32.onnx", "two", "--model", "model.fp32.onnx"], "model.fp32.onnx' must hold a grid"),
    ],
)
def test_convert_says_what_is_missing(leadline, quantize, out, given, words):
    quantize("--recipe", "minmax-w8a8")
    before = sorted(os.listdir(out))
    result = leadline("convert", *(out / word if word.endswith(("s", "x", "two")) else word for word in given))
    assert result.code == 2 and words in result.err and "Traceback" not in result.err
    assert sorted(os.listdir(out)) == before


def test_info_names_version_and_recipes(leadline):
    import leadline as package

    assert leadline("info", "--json").json["version"] == package.__version__
    assert "w8a8" in leadline("info").out


def test_a_printed_recipe_is_one_that_quantize_takes(leadline, quantize, tmp_path):
    listed = leadline("recipe").out
    assert all(name in listed for name in Recipe.names())
    printed = leadline("recipe", "minmax-w8a8")
    (tmp_path / "mine.toml").write_text(printed.out.replace('name = "minmax-w8a8"', 'name = "mine"'))
    assert quantize("--recipe", tmp_path / "mine.toml", "--json").json["recipe"]["name"] == "mine"


def test_pictures_with_flags(quantize, tmp_path):
    for i in range(4):
        picture(tmp_path / "pictures" / f"{i}.png", i)
    flags = ["--resize", "14", "--crop", "12x12", "--mean", "0.5,0.5,0.5", "--std", "0.25", "--channels", "BGR"]
    result = quantize(*flags, "--num-samples", "3", "--seed", "4", "--json", data=tmp_path / "pictures")
    assert result.code == 0, result.err
    assert result.json["data"]["calibration"] + len(result.json["data"]["held_out"]) == 3
    assert str(tmp_path) not in json.dumps(result.json)


def test_a_constant_and_an_all_zero_activation(leadline, quantize, tmp_path):
    onnx.save(conv_chain(RELU, b1=np.full(8, -1e3, np.float32)), str(tmp_path / "dead.onnx"))
    np.savez(tmp_path / "zeros.npz", x=np.zeros((4, *SHAPE[1:]), np.float32))
    for name, value in (("zeros", 0), ("threes", 3)):
        np.savez(tmp_path / f"{name}.npz", x=np.full((4, *SHAPE[1:]), value, np.float32))
        assert quantize(model=tmp_path / "dead.onnx", data=tmp_path / f"{name}.npz").code == 0


def test_an_unreadable_picture_is_skipped_and_counted(quantize, out, tmp_path):
    for i in range(4):
        picture(tmp_path / "pictures" / f"{i}.png", i)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    result = quantize(data=tmp_path / "pictures")
    assert result.code == 0 and "broken.png" in result.out
    ((name, reason),) = json.loads((out / "report.json").read_text())["data"]["skipped"]
    assert "broken.png" in name and reason
    assert "broken.png" in hint(quantize("--strict", data=tmp_path / "pictures", out=tmp_path / "strict"))
    assert not (tmp_path / "strict").exists()


@pytest.mark.filterwarnings("default:.report.:UserWarning")
def test_a_page_that_cannot_be_drawn_costs_no_artefact(leadline, quantize, data, out, tmp_path, monkeypatch):
    """Nor does an old report stand beside the new artefacts."""
    assert quantize("--recipe", "minmax-w8a8").code == 0
    (out / "mine.txt").write_text("mine")
    kept = sorted({*FILES, "mine.txt", "report-error.txt"} - {"report.html"})

    def broken(*_):
        raise ZeroDivisionError("a picture of nothing")

    with monkeypatch.context() as patch:
        patch.setattr("leadline.report._page", broken)
        result = quantize("--recipe", "w8a8", "--json")
        assert result.code == 0 and sorted(os.listdir(out)) == kept
        assert "warning: [report]" in result.err and "ZeroDivisionError: a picture of nothing" in result.err
        assert "Traceback" not in result.err and "Traceback" in (out / "report-error.txt").read_text()
        assert result.json["recipe"]["name"] == "w8a8" and set(result.json["files"]) == {*RUN}
        assert json.loads((out / "report.json").read_text()) == result.json
        shown = quantize()
        assert shown.code == 0 and "SQNR" in shown.out and "report.json" in shown.err
        verified = leadline(
            "verify", out / "model.fp32.onnx", out / "model.qdq.onnx", "--data", data, "--out", tmp_path / "v"
        )
        assert verified.code == 0 and sorted(os.listdir(tmp_path / "v")) == ["report-error.txt", "report.json"]
    assert quantize().code == 0 and sorted(os.listdir(out)) == sorted({*FILES, "mine.txt"})


def test_a_collapsed_artefact_is_written_and_exits_with_3(leadline, quantize, data, out, tmp_path):
    onnx.save(conv_relu_conv(), str(tmp_path / "skewed.onnx"))
    result = quantize("--recipe", "minmax-w8a8", "--json", model=tmp_path / "skewed.onnx")
    assert result.code == 3 and sorted(os.listdir(out)) == FILES
    (line,) = result.json["verification"]["collapse"]
    assert line.startswith("y: SQNR") and "Collapsed: y: SQNR" in (out / "report.html").read_text("utf-8")
    shown = leadline("verify", out / "model.fp32.onnx", out / "model.qdq.onnx", "--data", data)
    assert shown.code == 3 and "collapsed: y: SQNR" in shown.out and "first broken tensor" in shown.out
    for command in ("quantize", "verify"):
        assert "Exit code 3" in leadline(command, "--help").out
    assert quantize("--recipe", "w8a8", model=tmp_path / "skewed.onnx").code == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_verification_that_fails_leaves_the_artefact_and_no_old_report(quantize, out, monkeypatch, error):
    assert quantize("--recipe", "minmax-w8a8").code == 0
    before = (out / "model.qdq.onnx").read_bytes()

    def broken(*_, **__):
        raise error

    monkeypatch.setattr("leadline.quantized.verify", broken)
    if error is KeyboardInterrupt:
        assert quantize().code == 130
    else:
        with pytest.raises(error):
            quantize()
    assert sorted(os.listdir(out)) == RUN and (out / "model.qdq.onnx").read_bytes() != before


def test_a_simulation_leaves_no_encodings_of_an_earlier_run(quantize, out):
    assert quantize("--recipe", "minmax-w8a8").code == 0
    assert quantize("--recipe", "quartdepth-w4a8", "--json").json["limits"]
    assert sorted(os.listdir(out)) == [name for name in FILES if "encodings" not in name]


# -- What is refused --------------------------------------------------------------------------------------------------


def test_refusal_as_a_process(net, data, out):
    done = spawn("quantize", net, "--data", data, "--out", out, "--recipe", "w9a9")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "'w9a9'" in done.stderr


def bad_network(kind, path):
    proto = conv_relu_conv()
    if kind == "text":
        path.write_text("this is no network\n" * 50)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(proto.SerializeToString()[:-300])
    elif kind == "no external data":
        onnx.save(proto, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
        (path.parent / "weights.bin").unlink()
    elif kind in ("nan", "inf"):
        weight = draw(3, 4, 8, 3, 3)
        weight[1, 2, 0, 1] = float(kind)
        onnx.save(conv_chain(RELU, w2=weight), str(path))
    elif kind == "quantised":
        from small_networks import quantized

        onnx.save(quantized(proto, "minmax-w8a8").to_qdq(), str(path))


@pytest.mark.parametrize(
    "kind, words",
    [
        ("text", ["bad.onnx"]),
        ("empty", ["bad.onnx"]),
        ("truncated", ["bad.onnx"]),
        ("no external data", ["bad.onnx", "weights.bin"]),
        ("nan", ["w2", "nan"]),
        ("inf", ["w2", "inf"]),
        ("quantised", ["bad.onnx"]),
        ("missing", ["bad.onnx"]),
        ("folder", ["bad.onnx"]),
    ],
)
def test_a_bad_network_is_named(quantize, leadline, out, data, tmp_path, kind, words):
    path = tmp_path / "bad.onnx"
    bad_network(kind, path)
    for result in (quantize(model=path), leadline("verify", path, path, "--data", data)):
        message = hint(result)
        assert all(word.lower() in message.lower() for word in words), message
    assert not out.exists()


def arrays(kind):
    good = samples(4)
    if kind in ("nan", "inf"):
        good[...] = float(kind)
    return {
        "name": {"image": good},
        "more": {"x": good, "z": good},
        "shape": {"x": good[:, :, :-1]},
        "rank": {"x": good[0, 0]},
        "none": {"x": good[:0]},
        "text": {"x": np.array(["a", "b"])},
    }.get(kind, {"x": good})


@pytest.mark.parametrize(
    "kind, words",
    [
        ("name", ["image", "x", "data.npz"]),
        ("more", ["z", "x", "data.npz"]),
        ("shape", ["x", "11", "12"]),
        ("rank", ["x", "12"]),
        ("none", ["x"]),
        ("text", ["data.npz"]),
        ("nan", ["x", "nan", "data.npz[0]"]),
        ("inf", ["x", "inf", "data.npz[0]"]),
    ],
)
def test_bad_arrays_are_named(quantize, data, out, kind, words):
    np.savez(data, **arrays(kind))
    message = hint(quantize())
    assert all(word in message for word in words), message
    assert not out.exists()


def test_bad_data_sources_are_named(quantize, tmp_path, out):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("nothing to see")
    (tmp_path / "mixed").mkdir()
    np.save(tmp_path / "mixed" / "a.npy", samples(1))
    picture(tmp_path / "mixed" / "b.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:2000])
    for name in ("empty", "notes", "mixed", "broken", "cut.npz", "missing.npz", "net.onnx"):
        assert name in hint(quantize(data=tmp_path / name))
    assert not out.exists()


def test_bad_recipes_are_named(quantize, tmp_path, out):
    mine = tmp_path / "mine.toml"
    for text, word in (
        ('[[steps]]\nstep = "calibrate"\ncolour = 3\n', "colour"),
        ('[[steps]]\nstep = "dance"\n', "dance"),
        ("steps = [", "mine.toml"),
        ('[[steps]]\nstep = "fold"\n', "calibrate"),
        (Recipe.load("minmax-w8a8").to_toml() + '[[overrides]]\npattern = "haed.*"\nweights = "float"\n', "haed.*"),
    ):
        mine.write_text(text)
        assert word in hint(quantize("--recipe", mine))
    assert "'w9a9'" in hint(quantize("--recipe", "w9a9"))
    assert not out.exists()


def test_the_output_folder_must_be_writable(quantize, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert str(folder) in hint(quantize(out=folder))
    if os.path.isdir("/proc"):
        assert "/proc/nowhere" in hint(quantize(out="/proc/nowhere"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "extra, word",
    [
        (["--target", "toaster"], "'toaster'"),
        (["--crop", "big"], "'big'"),
        (["--mean", "a,b"], "'a,b'"),
        (["--layout", "HWC"], "'HWC'"),
        (["--num-samples", "0"], "0"),
        (["--encodings-version", "3.0"], "'3.0'"),
        (["--threads", "0"], "threads"),
        (["--threads", "-1"], "threads"),
        (["--mean", "0.5"], "preprocess applies to pictures"),
    ],
)
def test_bad_options_are_named(quantize, out, extra, word):
    assert word in hint(quantize(*extra))
    assert not out.exists()


def test_what_would_fail_at_the_end_is_refused_at_the_start(quantize, tmp_path):
    (tmp_path / "file").write_text("")
    assert "'3.0'" in hint(quantize("--encodings-version", "3.0", data=tmp_path / "missing"))
    assert "writable" in hint(quantize(out=tmp_path / "file", data=tmp_path / "missing"))


def test_what_typer_refuses_is_a_user_s_mistake_too(leadline, net, data, out):
    for arguments in (
        ["quantize", net],
        ["quantize", net, "--data", data],
        ["quantize", net, "--data", data, "--out", out, "--num-samples", "many"],
        ["quantize", net, "--data", data, "--out", out, "--colour", "red"],
        ["dance"],
        ["verify", net],
    ):
        result = leadline(*arguments)
        assert result.code == 2 and "Traceback" not in result.err + result.out


def test_other_commands_name_bad_files(leadline, net, data, tmp_path):
    text = tmp_path / "bad.encodings"
    text.write_text("{")
    (tmp_path / "text.onnx").write_text("text")
    for arguments, word in (
        (["inspect", text], "bad.encodings"),
        (["inspect", tmp_path / "text.onnx"], "text.onnx"),
        (["inspect", tmp_path / "missing.onnx"], "missing.onnx"),
        (["convert", text, tmp_path / "o.encodings", "--version", "2.0.0"], "bad.encodings"),
        (["convert", tmp_path / "missing", tmp_path / "o.encodings", "--version", "2.0.0"], "missing"),
        (["recipe", "w9a9"], "'w9a9'"),
        (["verify", net, tmp_path / "text.onnx", "--data", data], "text.onnx"),
        (["verify", net, tmp_path / "missing.onnx", "--data", data], "missing.onnx"),
    ):
        assert word in hint(leadline(*arguments))
    assert not (tmp_path / "o").exists()


def test_verify_refuses_strangers(leadline, net, data, tmp_path):
    other = model([node("Conv", "x w", "z")], SHAPE, outputs="z", w=draw(1, 4, 3, 3, 3))
    onnx.save(other, str(tmp_path / "other.onnx"))
    assert "['z']" in hint(leadline("verify", net, tmp_path / "other.onnx", "--data", data))


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.5, 2.0])
def test_an_interrupt_leaves_everything_as_it_was(tmp_path, delay):
    """SIGINT while the temporary folder stands: at its start, in calibration, and later."""
    onnx.save(residual(), str(tmp_path / "net.onnx"))
    np.save(tmp_path / "data.npy", samples(20_000))
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.qdq.onnx").write_bytes(b"earlier")
    command = ["quantize", tmp_path / "net.onnx", "--data", tmp_path / "data.npy", "--out", out, "--threads", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "leadline.cli", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in a shell's background ignore it
    )  # fmt: skip
    try:
        patience = time.monotonic() + 60
        while len(os.listdir(out)) < 2 and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.05)
        time.sleep(delay)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in said and "interrupted" in said and printed == ""
    assert os.listdir(out) == ["model.qdq.onnx"] and (out / "model.qdq.onnx").read_bytes() == b"earlier"
