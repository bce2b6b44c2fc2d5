"""Audits of torch modules and .pt2 files: the module and the line of the user's code beside each refusal."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from leadline import report
from leadline.audit import Audit, audit
from leadline.types import InputError
from test_cli import spawn

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
quantizer = pytest.mark.skipif(
    not find_spec("ai_edge_quantizer"), reason="needs ai-edge-quantizer: pip install 'leadline[tflite]'"
)
pytestmark = pytest.mark.torch
nn = torch.nn


class Turned(nn.Module):
    """Its sum over one axis is an operator that leadline has no torch function for."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.inner(x))
        return torch.cumsum(x, -1)  # this line


class Branching(nn.Module):
    def forward(self, x: Any) -> Any:
        return x if x.sum() > 0 else -x  # that line


class Picking(nn.Module):
    def forward(self, x: Any) -> Any:
        return x[x > 0]  # the line


def refused(found: Audit) -> Any:
    (finding,) = [finding for finding in found.findings if finding.status == "unsupported"]
    return finding


@quantizer
def test_a_module_is_asked_about_and_refusals_have_a_place(tmp_path: Path) -> None:
    found = audit(nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.GELU(), Turned())), "litert", torch.randn(2, 8))
    finding = refused(found)
    assert not found.passed and finding.operator == "CumSum"
    (place,) = finding.where
    assert place.startswith("'1.1' (Turned), test_torch_audit.py:") and "cumsum(x, -1)  # this line" in place
    ((_, _, _, note),) = [row for row in found.rows() if row[0] == "CumSum"]
    assert place in note
    gemm = next(finding for finding in found.findings if finding.operator == "Gemm")
    assert any("'1.1.inner' (Linear)" in place and "self.inner(x)" in place for place in gemm.where)
    report.write_audit(found, tmp_path / "page.html")
    assert "this line" in (tmp_path / "page.html").read_text()


@quantizer
def test_a_saved_program_on_the_command_line(tmp_path: Path) -> None:
    program = torch.export.export(Turned().eval(), (torch.randn(2, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    done = spawn("audit", str(tmp_path / "net.pt2"), "--target", "litert", "--json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    (finding,) = [one for one in document["findings"] if one["operator"] == "CumSum"]
    assert "this line" in finding["where"][0] and document["file"] == "net.onnx"


@pytest.mark.parametrize(
    ("last", "operator", "said"),
    [
        (Branching(), "torch.export", "that line; torch says GuardOnData"),
        pytest.param(Picking(), "NonZero", "# the line", marks=quantizer),  # the part in front is asked about
    ],
)
def test_what_stops_torch_or_the_target_is_a_finding(last: Any, operator: str, said: str) -> None:
    found = audit(nn.Sequential(nn.Linear(8, 8), nn.Sequential(last)), "litert", torch.randn(2, 8))
    finding = next(finding for finding in found.findings if finding.operator == operator)
    assert finding.status == "unsupported" and not found.passed
    text = f"{finding.note} {finding.where}"
    assert said in text and f"'1.0' ({type(last).__name__}), test_torch_audit.py:" in text


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[audit\] sample must be what the module is called with\. Received none\."):
        audit(Turned(), "litert")
    with pytest.raises(InputError, match=r"\[audit\] module must be an nn\.Module\. Received a int\."):
        audit(3, "litert", torch.randn(2, 8))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"path must be a \.pt2 file of torch\.export\.save\. Received .*not exist"):
        audit(tmp_path / "none.pt2", "litert")
    (tmp_path / "odd.pt2").write_text("no program")
    with pytest.raises(InputError, match=r"path must be a \.pt2 file of torch\.export\.save\. Received"):
        audit(tmp_path / "odd.pt2", "litert")
