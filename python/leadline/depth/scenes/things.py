"""Things that stand in scenes. Each function adds one to `solids`, at (x, y) on the floor z, turned by `yaw`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline.depth.scenes import textures
from leadline.depth.scenes.solids import Look, Solids

Random = np.random.Generator


class Spot:
    """A place on the floor with axes of its own: things are built in it and land in the world."""

    def __init__(self, solids: Solids, x: float, y: float, yaw: float = 0.0, floor: float = 0.0) -> None:
        self.solids, self.yaw = solids, yaw
        self._origin = np.array([x, y, floor])
        c, s = np.cos(yaw), np.sin(yaw)
        self._turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    def at(self, *point: float) -> NDArray[np.float64]:
        place: NDArray[np.float64] = self._origin + self._turn @ np.array(point, np.float64)
        return place

    def box(self, centre: tuple[float, float, float], half: tuple[float, float, float], look: Look) -> None:
        self.solids.box(self.at(*centre), half, look, self.yaw)

    def ball(
        self, centre: tuple[float, float, float], radii: ArrayLike, look: Look, yaw: float = 0, tilt: float = 0
    ) -> None:
        self.solids.ellipsoid(self.at(*centre), radii, look, self.yaw + yaw, tilt)

    def rod(
        self, start: tuple[float, float, float], end: tuple[float, float, float], radius: float, look: Look
    ) -> None:
        self.solids.rod(self.at(*start), self.at(*end), radius, look)


def colour(rng: Random, low: float = 0.08, high: float = 0.8, vivid: float = 0.6) -> tuple[float, float, float]:
    """A random colour; `vivid` 0 gives greys."""
    grey = rng.uniform(low, high)
    red, green, blue = np.clip(grey + vivid * rng.uniform(-0.4, 0.4, 3) * (0.4 + grey), 0.02, 0.95)
    return float(red), float(green), float(blue)


def cloth(rng: Random) -> Look:
    kind = rng.choice([textures.PLAIN, textures.STRIPES, textures.BLOTCHES, textures.DOTS, textures.TILES])
    return Look(int(kind), colour(rng), colour(rng), rng.uniform(0.08, 0.5))


def wood(rng: Random) -> Look:
    dark = rng.uniform(0.08, 0.45)
    first = (dark * 1.25, dark * 0.85, dark * 0.5)
    return Look(textures.GRAIN, first, (first[0] * 0.55, first[1] * 0.5, first[2] * 0.45), rng.uniform(0.08, 0.25))


def metal(rng: Random) -> Look:
    grey = colour(rng, 0.1, 0.7, 0.1)
    return Look(textures.PLAIN, grey, grey, 0.5)


def leaves(rng: Random) -> Look:
    green = rng.uniform(0.08, 0.35)
    first = (green * rng.uniform(0.4, 1.0), green, green * 0.35)
    return Look(textures.BLOTCHES, first, (first[0] * 0.4, first[1] * 0.4, first[2] * 0.4), rng.uniform(0.1, 0.3))


def paint(rng: Random) -> Look:
    base = colour(rng, 0.1, 0.8, 1.0)
    return Look(textures.PLAIN, base, tuple(0.8 * c for c in base), 0.7)  # type: ignore[arg-type]


def any_look(rng: Random) -> Look:
    makers: list[Callable[[Random], Look]] = [cloth, wood, metal, paint]
    return makers[rng.integers(len(makers))](rng)


def table(spot: Spot, rng: Random) -> None:
    w, d, h = rng.uniform(0.35, 0.9), rng.uniform(0.3, 0.5), rng.uniform(0.4, 0.78)
    top, leg = wood(rng), any_look(rng)
    spot.box((0, 0, h), (w, d, 0.02), top)
    for x in (-1.0, 1.0):
        for y in (-1, 1):
            spot.rod((x * (w - 0.05), y * (d - 0.05), 0), (x * (w - 0.05), y * (d - 0.05), h), 0.022, leg)
    clutter(spot, rng, h + 0.02, w * 0.8, d * 0.7, int(rng.integers(1, 6)))


def clutter(spot: Spot, rng: Random, height: float, w: float, d: float, count: int) -> None:
    """Small things on a surface: books, balls, cups, bottles, a small plant."""
    for _ in range(count):
        x, y = rng.uniform(-w, w), rng.uniform(-d, d)
        size = rng.uniform(0.03, 0.1)
        kind = rng.integers(4)
        if kind == 0:
            spot.box(
                (x, y, height + size / 2), (rng.uniform(0.05, 0.16), rng.uniform(0.05, 0.12), size / 2), any_look(rng)
            )
        elif kind == 1:
            spot.ball((x, y, height + size), size, any_look(rng))
        elif kind == 2:
            spot.rod((x, y, height), (x, y, height + rng.uniform(0.08, 0.3)), size * 0.5, paint(rng))
        else:
            plant(spot, rng, 0.5, (x, y, height))


def chair(spot: Spot, rng: Random) -> None:
    w, seat, back = rng.uniform(0.19, 0.25), rng.uniform(0.42, 0.5), rng.uniform(0.35, 0.55)
    frame, soft = any_look(rng), cloth(rng)
    spot.box((0, 0, seat), (w, w, 0.025), soft)
    for x in (-1.0, 1.0):
        for y in (-1, 1):
            top = seat + back if y < 0 else seat
            spot.rod((x * (w - 0.02), y * (w - 0.02), 0), (x * (w - 0.02), y * (w - 0.02), top), 0.016, frame)
    for share in np.linspace(0.4, 1.0, int(rng.integers(1, 4))):
        spot.box((0, -w + 0.02, seat + back * share - 0.04), (w - 0.02, 0.012, 0.045), soft)


def sofa(spot: Spot, rng: Random) -> None:
    w, soft = rng.uniform(0.45, 1.1), cloth(rng)
    spot.box((0, 0, 0.22), (w, 0.4, 0.2), soft)
    spot.box((0, -0.33, 0.55), (w, 0.1, 0.3), soft)
    for x in (-1.0, 1.0):
        spot.box((x * (w - 0.07), 0, 0.42), (0.09, 0.4, 0.2), soft)
    for x in np.linspace(-w * 0.6, w * 0.6, int(rng.integers(1, 4))):
        spot.ball((float(x), -0.15, 0.56), (0.2, 0.09, 0.17), cloth(rng), yaw=rng.uniform(-0.4, 0.4))


def shelf(spot: Spot, rng: Random) -> None:
    w, d, h, look = rng.uniform(0.35, 0.7), rng.uniform(0.13, 0.2), rng.uniform(1.0, 2.1), wood(rng)
    for x in (-1.0, 1.0):
        spot.box((x * w, 0, h / 2), (0.015, d, h / 2), look)
    spot.box((0, -d, h / 2), (w, 0.008, h / 2), look)
    boards = np.arange(0.08, h, rng.uniform(0.28, 0.4))
    for level in boards:
        spot.box((0, 0, float(level)), (w, d, 0.012), look)
        place = 0.03 - w
        while place < w * rng.uniform(0.2, 1.0):
            thick, tall = rng.uniform(0.03, 0.11), rng.uniform(0.12, 0.25)
            spot.box((place + thick / 2, 0, level + tall / 2), (thick / 2 - 0.002, d * 0.75, tall / 2), paint(rng))
            place += thick + (rng.uniform(0.05, 0.3) if rng.random() < 0.2 else 0)


def cupboard(spot: Spot, rng: Random) -> None:
    w, d, h, look = rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.3), rng.uniform(0.5, 2.0), any_look(rng)
    spot.box((0, 0, h / 2), (w, d, h / 2), look)
    for x in (-1.0, 1.0):
        spot.box((x * w / 2, d, h / 2), (w * 0.47, 0.01, h * 0.46), look._replace(first=look.second, second=look.first))
        spot.rod((x * 0.05, d + 0.03, h * 0.45), (x * 0.05, d + 0.03, h * 0.6), 0.01, metal(rng))
    if h < 1.2:
        clutter(spot, rng, h, w * 0.8, d * 0.6, int(rng.integers(1, 5)))


def bed(spot: Spot, rng: Random) -> None:
    w, frame = rng.uniform(0.45, 0.9), wood(rng)
    spot.box((0, 0, 0.18), (w, 1.0, 0.12), frame)
    spot.box((0, 0, 0.38), (w - 0.02, 0.98, 0.1), cloth(rng))
    spot.box((0, 0.2, 0.47), (w, 0.75, 0.03), cloth(rng))
    spot.box((0, -1.0, 0.5), (w, 0.03, 0.5), frame)
    for x in (-1.0, 1.0) if w > 0.6 else (0.0,):
        spot.ball((x * w / 2, -0.75, 0.53), (0.3, 0.18, 0.09), cloth(rng))


def floor_lamp(spot: Spot, rng: Random) -> None:
    h, look = rng.uniform(1.3, 1.8), metal(rng)
    spot.rod((0, 0, 0), (0, 0, 0.03), 0.14, look)
    spot.rod((0, 0, 0), (0, 0, h), 0.012, look)
    shade = Look(textures.PLAIN, colour(rng, 0.5, 0.9), (0.8, 0.75, 0.6), 0.4, glow=rng.uniform(0.2, 1.5))
    if rng.random() < 0.5:
        spot.rod((0, 0, h - 0.05), (0, 0, h + 0.2), rng.uniform(0.1, 0.2), shade)
    else:
        spot.ball((0, 0, h + 0.1), rng.uniform(0.1, 0.17), shade)


def plant(spot: Spot, rng: Random, scale: float = 1.0, base: tuple[float, float, float] = (0, 0, 0)) -> None:
    """A pot with long leaves."""
    x, y, z = base
    pot, green = rng.uniform(0.1, 0.2) * scale, leaves(rng)
    spot.rod((x, y, z), (x, y, z + 1.7 * pot), pot, any_look(rng))
    height = z + 1.7 * pot
    for _ in range(int(rng.integers(6, 13) * min(scale + 0.2, 1))):
        turn, lift = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.4)
        length = scale * rng.uniform(0.15, 0.45)
        reach = (length * np.cos(lift) * np.cos(turn), length * np.cos(lift) * np.sin(turn), length * np.sin(lift))
        tip = (x + reach[0], y + reach[1], height + reach[2])
        spot.ball(tip, (length * 0.8, length * rng.uniform(0.12, 0.3), 0.012 * scale), green, yaw=turn, tilt=lift * 0.8)
        spot.rod((x, y, height - 0.02), tip, 0.006 * scale, green)


def person(spot: Spot, rng: Random) -> None:
    h = rng.uniform(1.5, 1.9)
    skin = Look(textures.PLAIN, (rng.uniform(0.2, 0.7),) + (rng.uniform(0.15, 0.45),) * 2, (0.4, 0.3, 0.25), 0.6)
    top, legs = cloth(rng), cloth(rng)
    step = rng.uniform(0.0, 0.3)
    for x, way in ((-0.09, 1), (0.09, -1)):
        spot.rod((x, way * step, 0.04), (x, 0, 0.48 * h), 0.07, legs)
        spot.ball((x, way * step + 0.06, 0.05), (0.05, 0.13, 0.05), metal(rng))
        spot.rod((2.4 * x, 0, 0.8 * h), (2.9 * x, -way * step + 0.05, 0.5 * h), 0.045, top)
    spot.ball((0, 0, 0.65 * h), (0.19, 0.13, 0.22 * h), top)
    spot.ball((0, 0, 0.93 * h), (0.085, 0.1, 0.12), skin)
    spot.ball((0, -0.02, 0.96 * h), (0.09, 0.1, 0.1), metal(rng))


def ball(spot: Spot, rng: Random) -> None:
    size = rng.uniform(0.08, 0.3)
    spot.ball((0, 0, size), size, cloth(rng))


def crate(spot: Spot, rng: Random) -> None:
    size = rng.uniform(0.12, 0.35)
    spot.box((0, 0, size), (size, size * rng.uniform(0.6, 1.2), size), any_look(rng))
    if rng.random() < 0.4:
        spot.box((0.03, 0, 2.6 * size), (size * 0.7, size * 0.6, size * 0.6), any_look(rng))


def tree(spot: Spot, rng: Random) -> None:
    h, green = rng.uniform(2.0, 4.0), leaves(rng)
    bark = Look(textures.GRAIN, (0.2, 0.14, 0.09), (0.1, 0.07, 0.05), 0.15)
    spot.rod((0, 0, 0), (0, 0, h), rng.uniform(0.08, 0.2), bark)
    for _ in range(int(rng.integers(5, 10))):
        x, y, up = rng.normal(0, 0.7), rng.normal(0, 0.7), rng.uniform(0.1, 1.8)
        spot.ball((x, y, h + up), rng.uniform(0.5, 1.1, 3) * (1, 1, 0.8), green)
        spot.rod((0, 0, h * 0.8), (x, y, h + up), 0.04, bark)


def bush(spot: Spot, rng: Random) -> None:
    green = leaves(rng)
    for _ in range(int(rng.integers(2, 5))):
        size = rng.uniform(0.2, 0.5)
        spot.ball((rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.3), size * 0.8), (size, size, size * 0.9), green)


def street_lamp(spot: Spot, rng: Random) -> None:
    h, look = rng.uniform(4.0, 6.5), metal(rng)
    spot.rod((0, 0, 0), (0, 0, h), 0.05, look)
    spot.rod((0, 0, h), (1.1, 0, h + 0.25), 0.03, look)
    spot.ball((1.2, 0, h + 0.22), (0.3, 0.12, 0.07), look._replace(glow=0.6))


def sign(spot: Spot, rng: Random) -> None:
    h = rng.uniform(1.9, 2.6)
    spot.rod((0, 0, 0), (0, 0, h + 0.3), 0.03, metal(rng))
    board = Look(int(rng.integers(textures.KINDS)), colour(rng, vivid=1.2), (0.9, 0.9, 0.9), 0.3)
    if rng.random() < 0.5:
        spot.rod((0, -0.04, h), (0, -0.05, h), 0.3, board)
    else:
        spot.box((0, -0.04, h), (0.3, 0.01, rng.uniform(0.15, 0.35)), board)


def bench(spot: Spot, rng: Random) -> None:
    look, leg = wood(rng), metal(rng)
    for y in (-0.15, 0.0, 0.15):
        spot.box((0, y, 0.45), (0.8, 0.06, 0.02), look)
    for z in (0.6, 0.75):
        spot.box((0, -0.22, z), (0.8, 0.015, 0.05), look)
    for x in (-0.65, 0.65):
        spot.box((x, -0.02, 0.22), (0.025, 0.2, 0.22), leg)
        spot.rod((x, -0.2, 0.4), (x, -0.24, 0.85), 0.02, leg)


def bollards(spot: Spot, rng: Random) -> None:
    look = paint(rng)
    for x in np.arange(-1.5, 1.6, 0.75):
        spot.rod((float(x), 0, 0), (float(x), 0, 0.9), 0.05, look)


def fence(spot: Spot, rng: Random) -> None:
    look, long = any_look(rng), rng.uniform(1.5, 3.0)
    for x in np.arange(-long, long, rng.uniform(0.16, 0.3)):
        spot.rod((float(x), 0, 0), (float(x), 0, 1.0), 0.014, look)
    for z in (0.25, 0.95):
        spot.rod((-long, 0, z), (long, 0, z), 0.02, look)


def car(spot: Spot, rng: Random) -> None:
    """Along its own x axis."""
    body = paint(rng)
    glass = Look(textures.PLAIN, (0.05, 0.06, 0.08), (0.12, 0.14, 0.17), 1.0)
    tyre = Look(textures.PLAIN, (0.03, 0.03, 0.03), (0.06, 0.06, 0.06), 0.4)
    long, wide, high = rng.uniform(1.8, 2.3), rng.uniform(0.8, 0.92), rng.uniform(1.35, 1.7)
    spot.box((0, 0, 0.56), (long, wide, 0.27), body)
    spot.ball((long * 0.95, 0, 0.55), (0.25, wide * 0.97, 0.24), body)
    back = -long * rng.uniform(0.75, 0.98)
    middle, half = (back + long * 0.4) / 2, (long * 0.4 - back) / 2
    spot.ball((middle, 0, 0.8), (half * 1.1, wide * 0.93, high - 0.8), glass)
    spot.box((middle, 0, (high + 0.8) / 2), (half * 0.72, wide * 0.86, (high - 0.8) / 2 - 0.04), glass)
    spot.box((middle, 0, high - 0.06), (half * 0.74, wide * 0.88, 0.03), body)
    for x in (-0.62, 0.62):
        for y in (-1, 1):
            spot.rod((x * long, y * (wide - 0.18), 0.33), (x * long, y * (wide + 0.02), 0.33), 0.33, tyre)
            spot.rod((x * long, y * (wide + 0.02), 0.33), (x * long, y * (wide + 0.03), 0.33), 0.2, metal(rng))
    for lamp in (-0.6, 0.6):
        spot.ball((long * 1.05, lamp, 0.65), 0.11, Look(textures.PLAIN, (0.9, 0.9, 0.85), (0.9, 0.9, 0.8), 1, glow=0.3))
