"""What was rewritten, how equal the outputs are, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from leadline.display import table
from leadline.torch.rewrites.patches import Patch


@dataclass(frozen=True)
class Rewrite:
    """One module that was rewritten.

    Attributes
    ----------
    name : str
        Qualified name of the module ("" for the whole network).
    pattern : str
        One of `PATTERNS`.
    found : str
        What was there before, such as "scaled_dot_product_attention".
    difference : float or None
        Largest difference of the module's outputs on the example inputs, over the largest magnitude of the outputs.
        None: there were no example inputs to prove it on.
    """

    name: str
    pattern: str
    found: str
    difference: float | None


@dataclass(frozen=True)
class Rewrites:
    """What `rewrite` did. Prints a table.

    Attributes
    ----------
    done : tuple of Rewrite
        In the network's order for each pattern.
    left : dict of str to str
        Modules that fit a pattern and stay as they were, and why.
    difference : float or None
        As in `Rewrite`, of the whole network's outputs.
    """

    done: tuple[Rewrite, ...]
    left: Mapping[str, str]
    difference: float | None
    patches: tuple[Patch, ...] = field(repr=False)

    def undo(self) -> None:
        """Puts every module back; parameters and submodules have been the same objects all along. Once is enough."""
        for patch in reversed(self.patches):
            patch.undo()

    def __str__(self) -> str:
        width = max([len(_shown(r.name)) for r in self.done] + [6])
        lines = [f"{'module':<{width}}  {'pattern':<9}  {'difference':>10}  found"]
        for r in self.done:
            lines.append(f"{_shown(r.name):<{width}}  {r.pattern:<9}  {_difference(r.difference):>10}  {r.found}")
        lines.append(f"{'all':<{width}}  {'':<9}  {_difference(self.difference):>10}")
        return "\n".join(lines + [f"{_shown(name)} stays: {why}" for name, why in self.left.items()])

    def _repr_html_(self) -> str:
        rows = [(_shown(r.name), r.pattern, r.found, _difference(r.difference)) for r in self.done]
        caption = f"{len(rows)} rewrites, outputs differ by {_difference(self.difference)}"
        return table(("module", "pattern", "found", "difference"), rows, caption)


def _shown(name: str) -> str:
    return name or "(network)"


def _difference(value: float | None) -> str:
    return "not proved" if value is None else f"{value:.1e}" if value else "0"
