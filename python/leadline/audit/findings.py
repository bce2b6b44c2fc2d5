"""What an audit finds: plain data, and the lines of its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from leadline.types import few

if TYPE_CHECKING:
    from leadline.audit.network import Network

Status = Literal["unsupported", "unknown", "rewrite", "float", "supported"]
"""Worst first. "rewrite": taken in the form that leadline's exporter gives it, not as it is. "float": runs, but stays
in float. "unknown": not asked, because the network cannot be taken apart."""


@dataclass(frozen=True)
class Finding:
    """What a target says of one operator type.

    Attributes
    ----------
    operator : str
        Type, with the domain where it is not ONNX's own.
    status : Status
    names : tuple of str
        The nodes it stands for.
    forms : int
        Distinct attributes, shapes and settings among them: what was asked.
    note : str
        The target's reason, or what becomes of the operator.
    asked : bool
        The target's own answer; False where it comes from a list.
    where : tuple of str
        The modules, by qualified name, and the lines of the user's code that they come from, where the network was
        exported by torch and notes them.
    """

    operator: str
    status: Status
    names: tuple[str, ...]
    forms: int
    note: str = ""
    asked: bool = True
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """What leadline's import makes of operators before any target sees them.

    Attributes
    ----------
    taken, given : dict of str to int
        Operator types that go and that come, and how many; nothing comes where operators are computed once or do
        nothing.
    how : str
    """

    taken: dict[str, int]
    given: dict[str, int]
    how: str

    @property
    def text(self) -> str:
        """ "Erf 12, Mul 24 become Gelu 12" """
        if not self.given:
            return _listed(self.taken)
        return f"{_listed(self.taken)} become {_listed(self.given)}" if self.taken else f"{_listed(self.given)} added"


@dataclass(frozen=True)
class Audit:
    """The answers of one target about one network.

    Attributes
    ----------
    file, target : str
    basis : str
        Who was asked, and what comes from a list.
    nodes, normalised : int
        Operators as read, and after leadline's import (for a ``.tflite`` both are the file's).
    rewrites : tuple of Rewrite
        In the order in which they happen.
    findings : tuple of Finding
        Worst first, then the most frequent.
    """

    file: str
    target: str
    basis: str
    nodes: int
    normalised: int
    rewrites: tuple[Rewrite, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is unsupported, and nothing had to be left unasked."""
        return not any(finding.status in ("unsupported", "unknown") for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """How many nodes of each status there are."""
        return {
            status: sum(len(finding.names) for finding in self.findings if finding.status == status)
            for status in get_args(Status)
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        document = asdict(self) | {"passed": self.passed, "counts": self.counts()}
        for finding in document["findings"]:
            finding["names"], finding["where"] = list(finding["names"]), list(finding["where"])
        for entry, rewrite in zip(document["rewrites"], self.rewrites, strict=True):
            entry["text"] = rewrite.text
        return document | {"findings": list(document["findings"]), "rewrites": list(document["rewrites"])}

    def rows(self, longest: int = 3) -> list[tuple[str, str, str, str]]:
        """Operator, how many, status and note of each line; names of refused nodes are cut after `longest`."""
        rows: list[tuple[str, str, str, str]] = []
        for finding in self.findings:
            note = finding.note + ("" if finding.asked else " (from a list)")
            if finding.status in ("unsupported", "unknown"):
                note = f"{few(finding.where or finding.names, longest)}: {note}"
            rows.append((finding.operator, str(len(finding.names)), finding.status, note.strip()))
        return rows


def unread(network: Network, target: str) -> Audit:
    """Of a network that leadline's import does not pass: its obstacles."""
    basis = "leadline's import, which the network does not pass"
    return Audit(network.file, target, basis, network.nodes, network.nodes, (), ordered(network.obstacles))


def located(audit: Audit, origins: Mapping[str, object]) -> Audit:
    """With the places that the nodes come from, each once."""
    findings = (
        replace(finding, where=tuple(dict.fromkeys(str(origins[name]) for name in finding.names if name in origins)))
        for finding in audit.findings
    )
    return replace(audit, findings=tuple(findings))


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Worst first, then the most frequent."""
    ranks = {status: rank for rank, status in enumerate(get_args(Status))}
    return tuple(sorted(findings, key=lambda finding: (ranks[finding.status], -len(finding.names), finding.operator)))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
