"""Qualcomm's emulation of the Hexagon NPU, asked in a process of its own whether it takes a model.

``python -m leadline.audit.emulation FOLDER FIRST`` builds FOLDER/FIRST.onnx and the models after it, and writes a line
for each into FOLDER/answers. A crash of the vendor's library ends that process only; `ask` starts another behind it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.types import refuse

if TYPE_CHECKING:
    import onnx

PATIENCE = 180.0
"""Seconds without an answer after which a build is given up."""


@dataclass(frozen=True)
class Answer:
    """Whether every operator of a model runs on the NPU; if not, the provider's reason, and the nodes that it leaves on
    the CPU (none where the model is not built at all)."""

    accepted: bool
    reason: str = ""
    left: tuple[str, ...] = ()


def ask(models: Sequence[onnx.ModelProto]) -> list[Answer]:
    """Build each model with onnxruntime-qnn's HTP backend.

    Raises InputError without the extra ``leadline[hexagon]``.
    """
    try:
        import onnxruntime_qnn  # noqa: F401
    except ImportError as error:
        rule = "auditing for hexagon needs onnxruntime-qnn: pip install 'leadline[hexagon]'"
        raise refuse("audit", rule, str(error)) from error
    with tempfile.TemporaryDirectory(prefix="leadline-audit-") as name:
        folder = Path(name)
        for index, model in enumerate(models):
            (folder / f"{index}.onnx").write_bytes(model.SerializeToString())
        answers: list[Answer] = []
        while len(answers) < len(models):
            (folder / "answers").unlink(missing_ok=True)
            code = _run(folder, len(answers))
            new = [
                Answer(own["accepted"], own["reason"], tuple(own["left"])) for own in map(json.loads, _lines(folder))
            ]
            answers += new
            if len(answers) < len(models):
                if code is None:
                    answers.append(Answer(False, f"no answer within {PATIENCE:.0f} s"))
                else:
                    answers.append(Answer(False, f"the vendor's library ended the process (exit code {code})"))
    return answers


def _run(folder: Path, first: int) -> int | None:
    """The exit code; None where nothing was answered for too long."""
    command = [sys.executable, "-m", "leadline.audit.emulation", str(folder), str(first)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        known, since = 0, time.monotonic()
        while True:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                count = len(_lines(folder))
                if count > known:
                    known, since = count, time.monotonic()
                if time.monotonic() - since > PATIENCE:
                    process.kill()
                    process.wait()
                    return None
            except BaseException:
                process.kill()
                raise


def _lines(folder: Path) -> list[str]:
    """Complete lines only: the writer may be in the middle of one."""
    file = folder / "answers"
    return file.read_text("utf-8").splitlines() if file.exists() else []


def _work(folder: Path, first: int) -> None:
    import onnxruntime as ort
    import onnxruntime_qnn

    ort.register_execution_provider_library("qnn", onnxruntime_qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == "qnn"]
    total = len(list(folder.glob("*.onnx")))
    for index in range(first, total):
        log = (folder / "log").stat().st_size
        answer = _build(folder / f"{index}.onnx", devices, onnxruntime_qnn.get_qnn_htp_path())
        sys.stdout.flush()
        if not answer["accepted"]:
            with (folder / "log").open("rb") as stream:
                stream.seek(log)
                said = stream.read().decode(errors="replace")
            answer["reason"] = _reason(said) or answer["reason"]
        with (folder / "answers").open("a") as file:
            file.write(json.dumps(answer) + "\n")
    os._exit(0)  # the library's own destructors are nobody's answer


def _build(model: Path, devices: list[Any], backend: str) -> dict[str, Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 0  # reasons are written at this level only
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_provider_for_devices(devices, {"backend_path": backend})
    try:
        session = ort.InferenceSession(str(model), options)
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        return {"accepted": False, "reason": str(error).rsplit(" : ", 1)[-1], "left": []}
    left = [
        re.sub(r"_token_\d+$", "", node.name)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != "qnn"
        for node in part.get_nodes()
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear")  # of the model's own inputs and outputs
    ]
    return {"accepted": not left, "reason": "left on the CPU" if left else "", "left": left}


_REFUSED = re.compile(r"Validation FAILED for \d+ nodes in OrtNodeUnit \((\w+)\)")
_CODE = re.compile(r"QNN\.(\w+)\(\) failed for node `[^`]*` of type `(\w+)` with error code (\d+)")


def _reason(log: str) -> str:
    """What the provider's log says of the operator; of the pairs around it only if it says nothing else."""
    reasons: dict[str, str] = {}
    for match in _REFUSED.finditer(log):
        reason = log.find("REASON :", match.end())
        if reason >= 0:
            text = log[reason + 8 : log.find("\n", reason)].strip()
            reasons[match[1]] = re.split(r"(?<=[.)])\w+ node `", text)[0].strip().rstrip(".")
    own = {kind: text for kind, text in reasons.items() if kind not in ("QuantizeLinear", "DequantizeLinear")}
    codes = [f"{call} of {kind}: error {code}" for call, kind, code in _CODE.findall(log)
             if kind not in ("Quantize", "Dequantize")]  # fmt: skip
    plain = [text for text in (own or reasons).values() if text != "Failed to add node"]
    return "; ".join(dict.fromkeys([*plain, *codes])) or "; ".join(dict.fromkeys(reasons.values()))


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]))
