"""The process that holds Qualcomm's library: ``python -m leadline.targets.hexagon.worker DESCRIPTOR``.

It answers requests on that socket until it is closed, and ends with whoever asks, whatever the library is at. A crash
of the library ends this process only.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    """One session at a time."""

    def __init__(self) -> None:
        import onnxruntime as ort
        import onnxruntime_qnn

        ort.set_default_logger_severity(4)
        ort.register_execution_provider_library("qnn", onnxruntime_qnn.get_library_path())
        self._devices = [device for device in ort.get_ep_devices() if device.ep_name == "qnn"]
        self._backend = onnxruntime_qnn.get_qnn_htp_path()
        self._session: Any = None

    def build(self, model: str, provider: dict[str, str], entries: dict[str, str], verbose: bool) -> dict[str, Any]:
        """Load a model with whatever it takes on the NPU and the rest on the CPU; tell which is where."""
        import onnxruntime as ort

        self._session = None
        options = ort.SessionOptions()
        options.log_severity_level = 0 if verbose else 4  # reasons are written at this level only
        for key, value in {"session.record_ep_graph_assignment_info": "1", **entries}.items():
            options.add_session_config_entry(key, value)
        options.add_provider_for_devices(self._devices, {"backend_path": self._backend, **provider})
        start = time.monotonic()
        try:
            self._session = ort.InferenceSession(model, options)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            return {"error": str(error), "taken": 0, "left": [], "seconds": time.monotonic() - start}
        parts = self._session.get_provider_graph_assignment_info()
        left = [
            (re.sub(r"_token_\d+$", "", node.name), node.op_type)
            for part in parts
            if part.ep_name != "qnn"
            for node in part.get_nodes()
        ]
        taken = sum(len(part.get_nodes()) for part in parts if part.ep_name == "qnn")
        return {"error": "", "taken": taken, "left": left, "seconds": time.monotonic() - start}

    def run(self, feed: dict[str, Any]) -> dict[str, Any]:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feed), strict=True))


def end_with_the_other_side(descriptor: int) -> None:
    """Wait until nobody holds the socket's other end any more. The library lets other threads run."""
    waiting = select.poll()
    waiting.register(descriptor, 0)  # a hang-up is always reported
    waiting.poll()
    os._exit(0)


def main(descriptor: int) -> None:
    threading.Thread(target=end_with_the_other_side, args=(descriptor,), daemon=True).start()
    connection, worker = Connection(descriptor), None
    while True:
        try:
            request, arguments = connection.recv()
        except EOFError:
            os._exit(0)  # the library's own destructors are nobody's answer
        try:
            worker = worker or Worker()
            answer = (True, getattr(worker, request)(*arguments))
        except Exception as error:  # whatever it is, the other side has to hear of it
            answer = (False, f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        connection.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
