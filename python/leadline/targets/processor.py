"""What the integer kernels of this machine's processor do, whoever calls them."""

from __future__ import annotations

from pathlib import Path


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
