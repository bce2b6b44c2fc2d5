"""Target Hexagon: Qualcomm's HTP as the x86-64 library in onnxruntime-qnn emulates it, and what to expect of it.

The library runs in a process of its own: whatever happens to it, the interpreter lives on. It needs the extra
``leadline[hexagon]`` and Linux on x86-64 with glibc 2.35 or newer.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from leadline.files import replacing
from leadline.types import refuse

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Build:
    """What became of a model.

    Attributes
    ----------
    taken : int
        Nodes that run on the NPU.
    left : tuple of (str, str)
        Name and operator type of the nodes that stay on the CPU.
    reason : str
        What the provider says of those, or why the model is not built at all.
    seconds : float
    """

    taken: int
    left: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def accepted(self) -> bool:
        """Whether every node runs on the NPU, the conversions of the model's own inputs and outputs included."""
        return self.taken > 0 and not self.left

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return vars(self) | {"accepted": self.accepted, "text": str(self)}

    def lines(self) -> list[str]:
        return [str(self)]

    def __str__(self) -> str:
        if self.accepted:
            return f"hexagon: all {self.taken} nodes on the NPU, none on the CPU; built in {self.seconds:.1f} s"
        if not self.left:
            return f"hexagon does not build it: {self.reason}"
        names = ", ".join(f"{name} ({kind})" for name, kind in self.left)
        why = f"; {self.reason}" if self.reason else ""
        return f"hexagon leaves {len(self.left)} of {self.taken + len(self.left)} nodes on the CPU: {names}{why}"


class Emulator:
    """Qualcomm's emulation of the HTP, holding one model at a time.

    ::

        with Emulator() as npu:
            build = npu.build("model.qdq.onnx")
            outputs = npu.run({"image": image})

    Parameters
    ----------
    soc, arch : int, optional
        Qualcomm's numbers of the chip and of its HTP (``soc_model`` and ``htp_arch`` of the execution provider, e.g. 69
        and 79). Default: the library's own choice.
    patience : float
        Seconds to wait for each answer of the library: on some networks its compiler does not end.

    Raises
    ------
    InputError
        Without onnxruntime-qnn; from `run`, where the library fails or its process ends.
    """

    def __init__(self, soc: int | None = None, arch: int | None = None, patience: float = 600.0) -> None:
        check_installed()
        self._patience = patience
        self._provider = {"offload_graph_io_quantization": "0"}
        self._provider |= {} if soc is None else {"soc_model": str(soc)}
        self._provider |= {} if arch is None else {"htp_arch": str(arch)}
        self._folder = tempfile.TemporaryDirectory(prefix="leadline-hexagon-")
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._end()
        self._folder.cleanup()

    def build(self, model: onnx.ModelProto | str | os.PathLike[str], context: Path | None = None) -> Build:
        """Prepare a model to run; a failure is an answer, not an error.

        Parameters
        ----------
        model : onnx.ModelProto or path
        context : path, optional
            Where to write the compiled context ONNX, which holds the binary for the chip.
        """
        path = str(model) if isinstance(model, (str, os.PathLike)) else str(self._stored(model))
        entries = {} if context is None else {
            "ep.context_enable": "1", "ep.context_embed_mode": "1", "ep.context_file_path": str(context)
        }  # fmt: skip
        build = self._build(path, entries, verbose=False)
        if build.accepted or self._connection is None:
            return build
        start = self._log.stat().st_size
        again = self._build(path, entries, verbose=True)
        with self._log.open("rb") as stream:
            stream.seek(start)
            log = stream.read().decode(errors="replace")
        return Build(again.taken, again.left, _reason(log) or again.reason, build.seconds)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs by name, of the model built last."""
        succeeded, answer = self._ask("run", dict(feed))
        if not succeeded:
            raise refuse("hexagon", "the emulation must run the model", answer)
        return dict(answer)

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "log"

    def _stored(self, model: onnx.ModelProto) -> Path:
        path = Path(self._folder.name) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def _build(self, path: str, entries: dict[str, str], verbose: bool) -> Build:
        succeeded, answer = self._ask("build", path, self._provider, entries, verbose)
        if not succeeded:
            return Build(0, reason=answer)
        error = answer["error"].rsplit(" : ", 1)[-1]
        return Build(answer["taken"], tuple(map(tuple, answer["left"])), error, answer["seconds"])

    def _ask(self, request: str, *arguments: Any) -> tuple[bool, Any]:
        if self._connection is None:
            self._start()
        assert self._connection is not None and self._process is not None
        try:
            self._connection.send((request, arguments))
            if not self._connection.poll(self._patience):
                self._end()
                return False, f"no answer within {self._patience:g} s"
            succeeded, answer = self._connection.recv()
            return bool(succeeded), answer
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):  # it may be about to end
                self._process.wait(timeout=10)
            code = self._process.poll()
            self._end()
            return False, f"the vendor's library ended its process (exit code {code})"
        except BaseException:
            self._end()
            raise

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("ab") as log:
            command = [sys.executable, "-m", "leadline.targets.hexagon.worker", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()]
            )
        self._connection = Connection(ours.detach())

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None


def check_installed() -> None:
    """Raises InputError without onnxruntime-qnn."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        rule = "the target hexagon needs onnxruntime-qnn (Linux, x86-64): pip install 'leadline[hexagon]'"
        raise refuse("hexagon", rule, "a Python without it")


def compile_context(
    model: str | os.PathLike[str], path: str | os.PathLike[str], soc: int | None = None, arch: int | None = None
) -> Build:
    """Compile a QDQ model ahead of time for a chip, into an ONNX file that holds its context binary.

    Raises InputError where the model does not build as a whole, or the file cannot be written.
    """
    with Emulator(soc, arch) as npu, replacing(path) as temporary:
        temporary.unlink()  # the provider refuses to overwrite
        build = npu.build(Path(model), context=temporary)
        if not (build.accepted and temporary.exists()):
            raise refuse("hexagon", f"'{model}' must build for the chip", str(build))
    return build


_REFUSED = re.compile(r"Validation FAILED for \d+ nodes in OrtNodeUnit \((\w+)\)")
_CODE = re.compile(r"QNN\.(\w+)\(\) failed for node `[^`]*` of type `(\w+)` with error code (\d+)")


def _reason(log: str) -> str:
    """What the provider's log says of an operator; of the pairs around it only if it says nothing else."""
    reasons: dict[str, str] = {}
    for match in _REFUSED.finditer(log):
        reason = log.find("REASON :", match.end())
        if reason >= 0:
            text = log[reason + 8 : log.find("\n", reason)].strip()
            reasons[match[1]] = re.split(r"(?<=[.)])\w+ node `", text)[0].strip().rstrip(".")
    specific = {kind: text for kind, text in reasons.items() if kind not in ("QuantizeLinear", "DequantizeLinear")}
    codes = [f"{call} of {kind}: error {code}" for call, kind, code in _CODE.findall(log)
             if kind not in ("Quantize", "Dequantize")]  # fmt: skip
    plain = [text for text in (specific or reasons).values() if text != "Failed to add node"]
    return "; ".join(dict.fromkeys([*plain, *codes])) or "; ".join(dict.fromkeys(reasons.values()))
