"""The places: rooms and streets, furnished at random by a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from leadline.depth.scenes import textures, things
from leadline.depth.scenes.render import Light, World
from leadline.depth.scenes.solids import Look, Solids
from leadline.depth.scenes.things import Random, Spot

Box = tuple[float, float, float, float]
"""x and y from, x and y to."""

Thing = Callable[[Spot, Random], None]

# What stands in rooms: how, how wide and deep it is (half, metres), how often, and whether it leans on a wall.
_FURNITURE: list[tuple[Thing, float, float, float, bool]] = [
    (things.shelf, 0.7, 0.22, 2.0, True),
    (things.cupboard, 0.8, 0.33, 2.0, True),
    (things.sofa, 1.1, 0.45, 1.5, True),
    (things.bed, 0.9, 1.05, 0.7, True),
    (things.table, 0.9, 0.5, 2.0, False),
    (things.chair, 0.3, 0.3, 3.0, False),
    (things.plant, 0.4, 0.4, 1.5, False),
    (things.floor_lamp, 0.2, 0.2, 1.2, False),
    (things.ball, 0.3, 0.3, 0.7, False),
    (things.crate, 0.4, 0.4, 1.2, False),
    (things.person, 0.35, 0.35, 0.8, False),
]
_PAVEMENT: list[tuple[Thing, float]] = [
    (things.tree, 2.5),
    (things.bush, 1.2),
    (things.street_lamp, 1.5),
    (things.sign, 1.2),
    (things.bench, 1.0),
    (things.bollards, 0.8),
    (things.fence, 1.0),
    (things.person, 2.5),
    (things.crate, 0.8),
]


def room(rng: Random) -> tuple[World, Box]:
    """A furnished room and the floor that a camera may stand on."""
    solids = Solids()
    w, d, h = rng.uniform(1.5, 4.0), rng.uniform(1.5, 4.0), rng.uniform(2.3, 3.3)
    _shell(solids, rng, w, d, h)
    taken: list[tuple[float, float, float, float]] = []
    weights = np.array([entry[3] for entry in _FURNITURE])
    for _ in range(int(rng.integers(6, 9) + w * d)):
        thing, half_w, half_d, _, leans = _FURNITURE[rng.choice(len(_FURNITURE), p=weights / weights.sum())]
        if leans:
            side = int(rng.integers(4))
            yaw = (0, np.pi / 2, np.pi, -np.pi / 2)[side]
            along = d if side in (1, 3) else w
            across = w if side in (1, 3) else d
            if half_w > along or half_d > across:
                continue
            place, wall = rng.uniform(half_w - along, along - half_w), half_d - across
            x, y = ((place, wall), (-wall, place), (place, -wall), (wall, place))[side]
            reach = (half_w, half_d) if side in (0, 2) else (half_d, half_w)
        else:
            yaw, reach = rng.uniform(0, 2 * np.pi), (max(half_w, half_d),) * 2
            x, y = rng.uniform(reach[0] - w, w - reach[0]), rng.uniform(reach[1] - d, d - reach[1])
        if any(abs(x - a) < reach[0] + r and abs(y - b) < reach[1] + s for a, b, r, s in taken):
            continue
        taken.append((x, y, *reach))
        thing(Spot(solids, x, y, yaw), rng)
    if rng.random() < 0.5:
        x, y, low = rng.uniform(-w, w) / 2, rng.uniform(-d, d) / 2, rng.uniform(0.4, 0.9)
        solids.rod((x, y, h), (x, y, h - low), 0.006, things.metal(rng))
        solids.ellipsoid((x, y, h - low), rng.uniform(0.1, 0.22), things.paint(rng)._replace(glow=1.0))
    warm = rng.uniform(-0.12, 0.12)
    strength, ambient = rng.uniform(0.5, 1.1), rng.uniform(0.35, 0.6)
    light = Light(
        _unit(rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6), 1),
        (strength * (1 + warm), strength, strength * (1 - warm)),
        (ambient * (1 - warm / 2), ambient, ambient * (1 + warm / 2)),
        (0.3, 0.5, 0.8),
        exposure=rng.uniform(1.0, 1.7),
    )
    return World(solids, light), (0.25 - w, 0.25 - d, w - 0.25, d - 0.25)


def _shell(solids: Solids, rng: Random, w: float, d: float, h: float) -> None:
    """Floor, ceiling, walls with their skirting, and what hangs on them."""
    thick = 0.1
    floor = [things.wood, things.cloth][rng.integers(2)](rng)
    solids.box((0, 0, -thick), (w, d, thick), floor._replace(size=rng.uniform(0.15, 0.8)))
    pale = things.colour(rng, 0.6, 0.9, 0.15)
    solids.box((0, 0, h + thick), (w, d, thick), Look(textures.PLAIN, pale, pale, 1.0), shell=True)
    tint = things.colour(rng, 0.3, 0.85, 0.4)
    paper = Look(
        int(rng.choice([textures.PLAIN, textures.PLAIN, textures.STRIPES, textures.BRICKS, textures.DOTS])),
        tint,
        things.colour(rng, 0.3, 0.85, 0.3) if rng.random() < 0.5 else tuple(0.8 * c for c in tint),  # type: ignore[arg-type]
        rng.uniform(0.1, 0.6),
    )
    skirting = things.paint(rng)
    walls = [(0, -1, w, d), (1, 0, d, w), (0, 1, w, d), (-1, 0, d, w)]
    for x, y, along, across in walls:
        centre = np.array([x, y, 0.0]) * (across + thick)
        half = (along, thick) if x == 0 else (thick, along)
        solids.box(centre + np.array([0, 0, h / 2]), (*half, h / 2), paper, shell=True)
        edge = (along, 0.012) if x == 0 else (0.012, along)
        solids.box(np.array([x, y, 0.0]) * (across - 0.012) + np.array([0, 0, 0.05]), (*edge, 0.05), skirting)
        for _ in range(int(rng.integers(0, 4))):
            place, up = rng.uniform(-0.8, 0.8) * along, rng.uniform(1.2, 1.8)
            wide, high = rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.4)
            spot = Spot(solids, x * across, y * across, np.arctan2(y, x) + np.pi / 2)
            spot.box((place, 0.01, up), (wide, 0.02, high), things.any_look(rng))
            art = Look(int(rng.integers(textures.KINDS)), things.colour(rng), things.colour(rng), rng.uniform(0.1, 0.6))
            glow = rng.uniform(0.5, 1.2) if rng.random() < 0.3 else 0.0
            spot.box((place, 0.014, up), (wide * 0.9, 0.02, high * 0.88), art._replace(glow=glow))
    if rng.random() < 0.5:
        solids.box(
            (rng.uniform(-w, w) / 3, rng.uniform(-d, d) / 3, 0.004), (w * 0.4, d * 0.4, 0.004), things.cloth(rng)
        )


def street(rng: Random) -> tuple[World, Box]:
    """A street along x with buildings on both sides, and where on it a camera may stand."""
    solids = Solids()
    long, road, walk = 45.0, rng.uniform(2.6, 4.5), rng.uniform(1.6, 3.2)
    asphalt = Look(textures.BLOTCHES, things.colour(rng, 0.12, 0.3, 0.1), things.colour(rng, 0.1, 0.25, 0.1), 1.5)
    solids.box((0, 0, -0.6), (300, 300, 0.5), things.leaves(rng)._replace(size=3.0))
    solids.box((0, 0, -0.05), (long * 2, road, 0.05), asphalt)
    slabs = Look(
        int(rng.choice([textures.TILES, textures.BRICKS, textures.PLAIN])),
        things.colour(rng, 0.3, 0.6, 0.1),
        things.colour(rng, 0.25, 0.5, 0.1),
        rng.uniform(0.4, 1.0),
    )
    white = Look(textures.PLAIN, (0.8, 0.8, 0.78), (0.7, 0.7, 0.68), 0.5)
    for x in np.arange(-long, long, 4.0):
        solids.box((float(x), 0, 0.002), (0.9, 0.06, 0.003), white)
    for side in (-1, 1):
        solids.box((0, side * (road + walk), 0.0), (long * 2, walk, 0.13), slabs)
        _front(solids, rng, side, road + 2 * walk, long)
        _pavement(solids, rng, side, road, walk, long)
        x = -long
        while x < long:
            x += rng.uniform(4.5, 14)
            if rng.random() < 0.7:
                things.car(Spot(solids, x, side * (road - 1.05), np.pi * (side < 0) + rng.normal(0, 0.03)), rng)
    if rng.random() < 0.4:
        for x in np.arange(-long, long, 15.0):
            a, b = (float(x), -road, 5.5), (float(x) + rng.uniform(-3, 3), road, 6.0)
            solids.rod(a, b, 0.012, things.metal(rng))
    sun, ambient = rng.uniform(0.5, 1.3), rng.uniform(0.25, 0.5)
    light = Light(
        _unit(rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.7, 1.5)),
        (sun, sun * rng.uniform(0.85, 1.0), sun * rng.uniform(0.7, 1.0)),
        (ambient * 0.9, ambient, ambient * 1.1),
        (rng.uniform(0.1, 0.5), rng.uniform(0.3, 0.6), rng.uniform(0.5, 0.9)),
        exposure=rng.uniform(0.9, 1.4),
    )
    return World(solids, light), (-long * 0.6, 0.3 - road - 2 * walk, long * 0.2, road + 2 * walk - 0.3)


def _front(solids: Solids, rng: Random, side: int, start: float, long: float) -> None:
    """A row of houses, with gaps, doors, ledges and balconies."""
    x = -long
    while x < long:
        half, high, deep = rng.uniform(2.5, 7.0), rng.uniform(3.5, 14.0), rng.uniform(3.0, 6.0)
        back = start + rng.uniform(0, 2.0)
        wall = Look(
            int(rng.choice([textures.WINDOWS, textures.WINDOWS, textures.BRICKS, textures.PLAIN])),
            things.colour(rng, 0.2, 0.75, 0.4),
            things.colour(rng, 0.05, 0.3, 0.2),
            rng.uniform(1.6, 3.2),
        )
        wall = wall._replace(size=rng.uniform(0.4, 0.8)) if wall.texture == textures.BRICKS else wall
        y = side * (back + deep)
        solids.box((x + half, y, high / 2), (half, deep, high / 2), wall)
        face = side * back
        trim = things.paint(rng)
        solids.box((x + half, face, high), (half + 0.15, 0.2, 0.12), trim)
        solids.box((x + half + rng.uniform(-1.5, 1.5), face, 1.1), (0.5, 0.06, 1.05), things.any_look(rng))
        for level in np.arange(3.2, high - 1, 3.0):
            if rng.random() < 0.35:
                place = x + half + rng.uniform(-half, half) * 0.6
                solids.box((place, face - side * 0.4, float(level)), (1.0, 0.4, 0.06), trim)
                for post in np.linspace(-0.95, 0.95, 9):
                    foot = (place + float(post), face - side * 0.78)
                    solids.rod((*foot, float(level)), (*foot, float(level) + 0.9), 0.015, trim)
        if rng.random() < 0.5:
            solids.box((x + half, face - side * 0.5, 2.7), (half * 0.5, 0.5, 0.04), things.cloth(rng))
        x += 2 * half + (rng.uniform(1, 5) if rng.random() < 0.3 else 0.0)


def _pavement(solids: Solids, rng: Random, side: int, road: float, walk: float, long: float) -> None:
    weights = np.array([often for _, often in _PAVEMENT])
    x = -long
    while x < long:
        x += rng.uniform(1.5, 5.0)
        thing = _PAVEMENT[rng.choice(len(_PAVEMENT), p=weights / weights.sum())][0]
        near = thing in (things.tree, things.street_lamp, things.sign, things.bollards, things.fence)
        y = road + (0.4 if near else rng.uniform(0.5, 2 * walk - 0.4))
        turned: dict[Thing, float] = {
            things.person: rng.uniform(0, 2 * np.pi),
            things.street_lamp: -side * np.pi / 2,
        }
        yaw = turned.get(thing, side * np.pi)
        thing(Spot(solids, x, side * y, yaw, floor=0.13), rng)


def _unit(*vector: float) -> tuple[float, float, float]:
    x, y, z = np.asarray(vector) / np.linalg.norm(vector)
    return float(x), float(y), float(z)
