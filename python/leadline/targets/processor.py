"""What the integer kernels of this machine's processor do, whoever calls them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leadline.scores import OutputScore


def strays(outputs: Iterable[OutputScore]) -> bool:
    """Whether kernels that saturate bring an output more than a decibel below the artefact as written."""
    below = any(output.device is not None and output.device < output.sqnr - 1 for output in outputs)
    return below and kernels_saturate()


def kernels_saturate() -> bool:
    """Whether this processor's u8 x s8 kernels saturate at 16 bits, as x86 without VNNI does.

    onnxruntime and OpenVINO (measured with VNNI hidden from it) then stray from the artefact wherever two products
    overflow together; phones, and x86 with VNNI, do not. onnxruntime's ``session.x64quantprecision=1`` avoids it at
    some cost in speed.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), None)
    return flags is not None and not {"avx512_vnni", "avx_vnni"} & set(flags)
