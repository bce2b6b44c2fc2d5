"""The solids of a scene, gathered one by one and kept as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline.depth.scenes import textures
from leadline.depth.scenes.shapes import BOX, CYLINDER, ELLIPSOID


class Look(NamedTuple):
    """A surface: pattern (`textures`), its two colours (RGB, 0..1, linear), its period in metres, and whether it
    shines by itself."""

    texture: int = textures.PLAIN
    first: tuple[float, float, float] = (0.6, 0.6, 0.6)
    second: tuple[float, float, float] = (0.4, 0.4, 0.4)
    size: float = 0.5
    glow: float = 0.0


@dataclass
class Solids:
    """Unit shapes under affine maps. `shell` marks walls and ceilings, which cast no shadow into the room."""

    kinds: list[int] = field(default_factory=list)
    maps: list[NDArray[np.float64]] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    shell: list[bool] = field(default_factory=list)

    def box(self, centre: ArrayLike, half: ArrayLike, look: Look, yaw: float = 0.0, shell: bool = False) -> None:
        """Half edge lengths in metres; `yaw` in radians about the vertical."""
        self._add(BOX, _turned(half, yaw), centre, look, shell)

    def ellipsoid(self, centre: ArrayLike, radii: ArrayLike, look: Look, yaw: float = 0.0, tilt: float = 0.0) -> None:
        """Radii in metres; `tilt` in radians lifts its own x axis before `yaw` turns it."""
        c, s = np.cos(tilt), np.sin(tilt)
        lift = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        self._add(ELLIPSOID, _turned(1.0, yaw) @ lift @ np.diag(np.broadcast_to(radii, 3)), centre, look)

    def rod(self, start: ArrayLike, end: ArrayLike, radius: float, look: Look) -> None:
        """A cylinder from one point to another."""
        a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
        axis = (b - a) / 2
        along = axis / np.linalg.norm(axis)
        aside = np.cross(along, [1.0, 0, 0] if abs(along[0]) < 0.7 else [0, 1.0, 0])
        aside /= np.linalg.norm(aside)
        matrix = np.stack([aside * radius, np.cross(along, aside) * radius, axis], 1)
        self._add(CYLINDER, matrix, (a + b) / 2, look)

    def _add(self, kind: int, matrix: NDArray[np.float64], centre: ArrayLike, look: Look, shell: bool = False) -> None:
        self.kinds.append(kind)
        self.maps.append(np.concatenate([matrix, np.asarray(centre, np.float64)[:, None]], 1))
        self.looks.append(look)
        self.shell.append(shell)


def _turned(half: ArrayLike, yaw: float) -> NDArray[np.float64]:
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    matrix: NDArray[np.float64] = turn @ np.diag(np.broadcast_to(np.asarray(half, np.float64), 3))
    return matrix
