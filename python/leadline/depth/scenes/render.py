"""A renderer in numpy: each solid is met by the rays of its own rectangle of the picture, the nearest one is shaded.

Depth is exact to float32: the ray parameter of the nearest entrance, with no meshes and no tessellation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadline.depth.scenes import shapes, textures
from leadline.depth.scenes.camera import Camera, Matrix
from leadline.depth.scenes.solids import Solids
from leadline.types import FloatArray

_CORNERS = np.array([[x, y, z, 1.0] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
_NEAR = 0.05
_LARGE = 600
_SHADOW = 384


@dataclass(frozen=True, eq=False)
class Frame:
    """What a camera sees: `rgb` (height, width, 3) uint8, and `depth` (height, width) float32, metres along the optical
    axis, infinite for the sky."""

    rgb: NDArray[np.uint8]
    depth: FloatArray
    camera: Camera


@dataclass(frozen=True)
class Light:
    """`towards` (3,) points at the sun (or the ceiling); colours are RGB, linear."""

    towards: tuple[float, float, float]
    colour: tuple[float, float, float]
    ambient: tuple[float, float, float]
    sky: tuple[float, float, float]
    exposure: float = 1.0


class _Rectangles(NamedTuple):
    """Parts of a picture, one for each solid that can be seen, and the least depth it can have."""

    solid: NDArray[np.intp]
    left: NDArray[np.intp]
    top: NDArray[np.intp]
    right: NDArray[np.intp]
    bottom: NDArray[np.intp]
    closest: Matrix

    @property
    def area(self) -> NDArray[np.intp]:
        return (self.right - self.left) * (self.bottom - self.top)

    def rows(self, which: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, int, int, float]]:
        return zip(*(column[which].tolist() for column in self), strict=True)

    def pixels(self, which: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], Matrix]:
        """Solid, row, column and least depth of every pixel of every rectangle."""
        area = self.area[which]
        index = np.repeat(np.flatnonzero(which), area)
        inside = np.arange(len(index)) - np.repeat(np.cumsum(area) - area, area)
        row, column = np.divmod(inside, (self.right - self.left)[index])
        return self.solid[index], row + self.top[index], column + self.left[index], self.closest[index]


@dataclass(eq=False)
class World:
    """Solids and light, ready to be rendered from any camera."""

    solids: Solids
    light: Light
    _kinds: NDArray[np.int8] = field(init=False)
    _to_world: Matrix = field(init=False)
    _to_local: Matrix = field(init=False)

    def __post_init__(self) -> None:
        self._kinds = np.array(self.solids.kinds, np.int8)
        self._to_world = np.stack(self.solids.maps)
        inverse = np.linalg.inv(self._to_world[:, :, :3])
        shift = -(inverse @ self._to_world[:, :, 3:])
        self._to_local = np.concatenate([inverse, shift], 2)

    def render(self, camera: Camera, antialias: int = 1) -> Frame:
        """The picture; `antialias` (odd) rays a side for each pixel's colour. Depth is that of the centre ray alone."""
        height, width = camera.size
        if antialias > 1:
            scale = np.diag([antialias, antialias, 1.0])
            scale[:2, 2] = (antialias - 1) / 2
            fine = self.render(Camera(scale @ camera.intrinsics, camera.pose, (height * antialias, width * antialias)))
            rgb = fine.rgb.reshape(height, antialias, width, antialias, 3).astype(np.float32).mean((1, 3))
            middle = slice(antialias // 2, None, antialias)
            return Frame(np.rint(rgb).astype(np.uint8), fine.depth[middle, middle].copy(), camera)
        depth, owner = self._trace(camera)
        return Frame(self._shaded(camera, depth, owner), depth, camera)

    def depth(self, camera: Camera) -> FloatArray:
        """Depth alone: (height, width) float32 metres."""
        return self._trace(camera)[0]

    def near(self, points: Matrix, margin: float) -> NDArray[np.bool_]:
        """Whether each of `points` (n, 3) is within `margin` metres of a solid's bounding box in its own frame."""
        local = np.einsum("sij,nj->sni", self._to_local[:, :, :3], points) + self._to_local[:, None, :, 3]
        reach = 1 + margin / np.linalg.norm(self._to_world[:, :, :3], axis=1)
        hit: NDArray[np.bool_] = (np.abs(local) < reach[:, None]).all(2).any(0)
        return hit

    def _trace(self, camera: Camera) -> tuple[FloatArray, NDArray[np.int32]]:
        """Depth, and which solid it is of; -1 for the sky."""
        depth = np.full(camera.size, np.inf, np.float32)
        owner = np.full(camera.size, -1, np.int32)
        maps = (self._to_local[:, :, :3] @ camera.directions()).astype(np.float32)
        eyes = (self._to_local @ np.append(camera.pose[:3, 3], 1.0)).astype(np.float32)
        rectangles = self._rectangles(camera)
        large = rectangles.area > _LARGE
        # Large ones one by one, nearest first; small ones all together, since a loop would cost more than their rays.
        for solid, left, top, right, bottom, least in rectangles.rows(large):
            part = slice(top, bottom), slice(left, right)
            if least < depth[part].max():
                u, v = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)[:, None]
                direction = tuple(m[0] * u + (m[1] * v + m[2]) for m in maps[solid])
                _nearer(
                    solid, shapes.enter(self._kinds[solid], tuple(eyes[solid]), direction), depth[part], owner[part]
                )
        who, row, column, closest = rectangles.pixels(~large)
        hidden = closest >= depth[row, column]
        who, row, column = who[~hidden], row[~hidden], column[~hidden]
        pixel = row * camera.size[1] + column
        for kind in range(shapes.KINDS):
            here = self._kinds[who] == kind
            i, u, v, at = who[here], column[here].astype(np.float32), row[here].astype(np.float32), pixel[here]
            m, e = maps[i], eyes[i]
            direction = tuple(m[:, axis, 0] * u + m[:, axis, 1] * v + m[:, axis, 2] for axis in range(3))
            distance = shapes.enter(kind, (e[:, 0], e[:, 1], e[:, 2]), direction)
            np.minimum.at(depth.ravel(), at, distance)
            first = (distance == depth.ravel()[at]) & np.isfinite(distance)
            owner.ravel()[at[first]] = i[first]
        return depth, owner

    def _rectangles(self, camera: Camera) -> _Rectangles:
        """Which part of the picture each solid can be in, nearest first."""
        height, width = camera.size
        corners = camera.project(_CORNERS @ self._to_world.transpose(0, 2, 1))
        ahead = corners[..., 2] > _NEAR
        whole = np.expand_dims(ahead.all(1), 1)
        low = np.where(whole, np.maximum(np.floor(corners[..., :2].min(1)), 0), 0).astype(int)
        high = np.minimum(np.ceil(corners[..., :2].max(1)) + 1, (width, height))
        high = np.where(whole, high, (width, height)).astype(int)
        closest = corners[..., 2].min(1)
        seen = np.flatnonzero(ahead.any(1) & (low < high).all(1))
        seen = seen[np.argsort(closest[seen])]
        (left, top), (right, bottom) = low[seen].T, high[seen].T
        return _Rectangles(seen, left, top, right, bottom, closest[seen])

    def _shaded(self, camera: Camera, depth: FloatArray, owner: NDArray[np.int32]) -> NDArray[np.uint8]:
        solid = owner >= 0
        who = owner[solid]
        rays = _rays(camera)
        points = rays[solid] * depth[solid, None] + camera.pose[:3, 3].astype(np.float32)
        kinds, maps = self._kinds[who], self._to_local.astype(np.float32)[who]
        local = (maps[:, :, :3] @ points[:, :, None])[:, :, 0] + maps[:, :, 3]
        faces = shapes.normal(kinds, local)
        normals = (faces[:, None, :] @ maps[:, :, :3])[:, 0]
        normals /= np.sqrt(np.einsum("ni,ni->n", normals, normals))[:, None] + np.float32(1e-12)
        footprint = depth[solid] / np.float32(camera.intrinsics[0, 0])
        albedo, glow = self._surface(who, local, faces, footprint)
        light = self.light
        lit = np.clip(normals @ np.asarray(light.towards, np.float32), 0, 1) * self._lit(points, normals)
        up = (np.float32(0.75) + np.float32(0.25) * normals[:, 2])[:, None]
        shine = lit[:, None] * np.asarray(light.colour, np.float32) + up * np.asarray(light.ambient, np.float32)
        picture = np.empty((*camera.size, 3), np.float32)
        picture[solid] = albedo * (shine + glow[:, None])
        if not solid.all():
            picture[~solid] = self._sky(rays[~solid])
        # sRGB's curve, nearly.
        bright = np.sqrt(np.clip(picture * np.float32(light.exposure), 0, 1))
        return np.asarray(bright * 255 + 0.5).astype(np.uint8)

    def _surface(
        self, who: NDArray[np.int32], local: FloatArray, faces: FloatArray, footprint: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Albedo (n, 3) and glow (n,) of points, and their normals `faces`, in their solid's frame."""
        lengths = np.linalg.norm(self._to_world[:, :, :3], axis=1).astype(np.float32)[who]
        metres = local * lengths
        # The two axes along the surface: those that the normal points along least.
        drop = np.abs(faces).argmax(1)
        rows = np.arange(len(who))
        u = metres[rows, np.where(drop == 0, 1, 0)]
        v = metres[rows, np.where(drop == 2, 1, 2)]
        shift = (who * np.float32(0.37)) % np.float32(5)
        looks = self._looks
        kind, size = looks["kind"][who], looks["size"][who]
        mix = textures.pattern(kind, u + shift, v + shift, size, footprint)[:, None]
        albedo = looks["first"][who] * (1 - mix) + looks["second"][who] * mix
        albedo *= np.float32(0.8) + np.float32(0.4) * textures.noise(u + shift, v - shift, 1.9)[:, None]
        return albedo, looks["glow"][who]

    @cached_property
    def _looks(self) -> dict[str, NDArray[Any]]:
        looks = self.solids.looks
        return {
            "kind": np.array([look.texture for look in looks], np.int8),
            "first": np.array([look.first for look in looks], np.float32),
            "second": np.array([look.second for look in looks], np.float32),
            "size": np.array([look.size for look in looks], np.float32),
            "glow": np.array([look.glow for look in looks], np.float32),
        }

    def _sky(self, rays: FloatArray) -> FloatArray:
        rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
        high: FloatArray = np.maximum(rays[:, 2], np.float32(0.02))
        cloud = textures.noise(rays[:, 0] / high, rays[:, 1] / high, 9.0)
        white = np.clip(2.4 * cloud - 1, 0, 1) * np.clip(4 * rays[:, 2], 0, 1)
        haze = np.exp(-4 * np.maximum(rays[:, 2], 0))
        blend = np.maximum(white, 0.8 * haze)[:, None]
        sky: FloatArray = np.asarray(self.light.sky, np.float32) * (1 - blend) + np.float32(0.85) * blend
        return sky

    def _lit(self, points: FloatArray, normals: FloatArray) -> FloatArray:
        """How much of the light reaches the points: 1 in the light, 0 in the shadow."""
        depth, view = self._shadow
        # From a little above the surface, so that it does not shade itself.
        lifted = points + np.float32(0.02) * normals
        seen = lifted @ view[:, :3].T.astype(np.float32) + view[:, 3].astype(np.float32)
        total = np.zeros(len(points), np.float32)
        for shift in ((-0.7, 0.3), (0.3, 0.7), (0.7, -0.3), (-0.3, -0.7)):
            column = np.clip(np.rint(seen[:, 0] + np.float32(shift[0])), 0, _SHADOW - 1).astype(np.int32)
            row = np.clip(np.rint(seen[:, 1] + np.float32(shift[1])), 0, _SHADOW - 1).astype(np.int32)
            total += seen[:, 2] < depth.ravel()[row * _SHADOW + column] + np.float32(0.03)
        share: FloatArray = total / np.float32(4)
        return share

    @cached_property
    def _shadow(self) -> tuple[FloatArray, Matrix]:
        """The scene's depth from the light, and the (3, 4) map from the world to its pixels and depth."""
        casting = [solid for solid, shell in enumerate(self.solids.shell) if not shell]
        towards = np.asarray(self.light.towards, np.float64)
        aside = np.cross(towards, [0.0, 1.0, 0.0])
        aside /= np.linalg.norm(aside)
        frame = np.stack([aside, np.cross(towards, aside), -towards])
        corners = _CORNERS @ self._to_world[casting].transpose(0, 2, 1) @ frame.T
        # Huge ground plates would waste the map: it spans what stands on them.
        extent = corners.max(1) - corners.min(1)
        standing = extent[:, :2].max(1) < 60
        low, high = corners[standing].min((0, 1)), corners[standing].max((0, 1))
        step = (high - low)[:2] / _SHADOW
        view = np.concatenate([frame, np.zeros((3, 1))], 1)
        view[:2] /= step[:, None]
        view[:2, 3] = -low[:2] / step - 0.5
        view[2, 3] = -low[2]
        start = np.linalg.inv(np.concatenate([view, [[0, 0, 0, 1.0]]]))
        depth = np.full((_SHADOW, _SHADOW), np.inf, np.float32)
        owner = np.full((_SHADOW, _SHADOW), -1, np.int32)
        axis = np.arange(_SHADOW, dtype=np.float32)
        for solid, bounds in zip(casting, corners, strict=True):
            left, top = np.clip(np.floor((bounds.min(0)[:2] - low[:2]) / step - 0.5), 0, _SHADOW).astype(int)
            right, bottom = np.clip(np.ceil((bounds.max(0)[:2] - low[:2]) / step + 1), 0, _SHADOW).astype(int)
            rows, columns = slice(top, bottom), slice(left, right)
            to_local = np.concatenate([self._to_local[solid], [[0, 0, 0, 1.0]]]) @ start
            ray = to_local.astype(np.float32)
            origin = tuple(m[0] * axis[columns] + (m[1] * axis[rows, None] + m[3]) for m in ray[:3])
            direction = tuple(ray[:3, 2])
            _nearer(
                solid, shapes.enter(self._kinds[solid], origin, direction), depth[rows, columns], owner[rows, columns]
            )
        return depth, view


def _rays(camera: Camera) -> FloatArray:
    """(height, width, 3): the direction of each pixel for one metre of depth."""
    height, width = camera.size
    m = camera.directions().astype(np.float32)
    u, v = np.arange(width, dtype=np.float32)[:, None], np.arange(height, dtype=np.float32)[:, None, None]
    return m[:, 0] * u + (m[:, 1] * v + m[:, 2])


def _nearer(solid: int, distance: FloatArray, depth: FloatArray, owner: NDArray[np.int32]) -> None:
    closer = distance < depth
    np.copyto(depth, distance, where=closer)
    np.copyto(owner, solid, where=closer)
