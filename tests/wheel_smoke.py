"""What a built wheel must do in a clean environment, in plain Python: a few seconds, and each check names its fault.

python tests/wheel_smoke.py
"""

import importlib
import os
import platform
import subprocess
import sys
import tempfile


def check(fault, good):
    if not good:
        raise SystemExit(f"wheel: {fault}")


def cores():
    """One call of each core against numpy: a miscompiled or mislinked module."""
    import numpy as np

    from leadline import Scheme, affine, gram, observers

    x = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    answers = []
    for threads in (1, 2, 3):
        lo, hi = affine.range_of(x, Scheme(), threads=threads)
        check("affine: wrong range", (lo, hi) == (x.min(), x.max()))
        grid = affine.choose_grid(lo, hi, Scheme())
        codes = affine.quantize(x, grid, threads=threads)
        check("affine: wrong codes", np.abs(affine.dequantize(codes, grid) - x).max() <= grid.scale * 0.5001)
        histogram = observers.Histogram().update(x, threads=threads)
        check("observers: wrong count", histogram.count == x.size)
        low, high = observers.search_range(histogram, "mse", Scheme(), threads=threads)
        check("observers: wrong range", lo <= low < 0 < high <= hi)
        second = gram.Gram(64).update(x, threads=threads).matrix()
        check("gram: wrong moments (Eigen)", np.allclose(second, x.T.astype(float) @ x / 300, atol=1e-5))
        answers.append((codes.tobytes(), low, high, second.tobytes()))
    check("threads change the result (OpenMP)", all(a == answers[0] for a in answers))
    try:
        affine.range_of(x, Scheme(granularity="axis", axis=5))
        check("a mistake went unnoticed", False)
    except ValueError as error:
        check("the message lost its form", str(error).startswith("[range_of] axis must lie"))


def demo():
    """The demo needs no download and no extra: a recipe on the smaller network that comes with the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "leadline.cli", "demo", "--network", "tinydepth-conv", "--out", folder]
        done = subprocess.run([*command, "--recipe", "minmax-w8a8"], capture_output=True, text=True)
        check(f"the demo fails: {done.stderr[-500:]}", done.returncode == 0)
        written = {"report.html", "report.json", "minmax-w8a8/model.qdq.onnx"}
        check("the demo wrote too little", all(os.path.exists(os.path.join(folder, file)) for file in written))
    networks = os.path.join(os.path.dirname(importlib.import_module("leadline.depth.networks").__file__))
    size = sum(os.path.getsize(os.path.join(networks, f)) for f in os.listdir(networks) if f.endswith(".onnx"))
    check(f"the shipped networks have {size} bytes", 0 < size < 8e6)


def main():
    import leadline

    print(leadline.build_info())
    check("imports something heavy", not {"torch", "onnx", "onnxruntime"} & set(sys.modules))
    check("lacks py.typed", os.path.exists(os.path.join(os.path.dirname(leadline.__file__), "py.typed")))
    check("was not built for release", leadline.build_info()["build_type"] == "Release")
    cores()
    if platform.machine().lower() in ("x86_64", "amd64"):
        v2 = importlib.import_module("leadline._core_v2")
        levels = ["v2", "v3"] if v2.supports_v3() else ["v2"]
        for level in levels:
            code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import wheel_smoke as w; w.cores()"
            done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "LEADLINE_ISA": level})
            check(f"module {level} fails", done.returncode == 0)
    demo()
    print("ok")


if __name__ == "__main__":
    main()
