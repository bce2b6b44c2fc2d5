"""Pinhole cameras, with the axes of OpenCV: x right, y down, z forward; pixel centres at whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leadline.types import refuse

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Camera:
    """A camera in the world.

    Attributes
    ----------
    intrinsics : (3, 3) float64
        [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels.
    pose : (4, 4) float64
        Camera to world; metres. The world's z points up.
    size : (height, width) in pixels
    """

    intrinsics: Matrix
    pose: Matrix
    size: tuple[int, int]

    @classmethod
    def looking(
        cls, eye: ArrayLike, target: ArrayLike, size: tuple[int, int], field_of_view: float = 60.0, roll: float = 0.0
    ) -> Camera:
        """At `eye`, towards `target` (metres, world); `field_of_view` (horizontal) and `roll` in degrees.

        Raises InputError where `target` is `eye`, or straight above or below it.
        """
        start = np.asarray(eye, np.float64)
        forward = np.asarray(target, np.float64) - start
        right = np.cross(forward, [0.0, 0.0, 1.0])
        if np.linalg.norm(right) < 1e-9:
            raise refuse(
                "Camera.looking", "target must lie to the side of eye", f"eye {start}, target {np.asarray(target)}"
            )
        forward /= np.linalg.norm(forward)
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        turn = np.deg2rad(roll)
        pose = np.eye(4)
        pose[:3, 0] = np.cos(turn) * right + np.sin(turn) * down
        pose[:3, 1] = np.cos(turn) * down - np.sin(turn) * right
        pose[:3, 2] = forward
        pose[:3, 3] = start
        height, width = size
        focal = width / 2 / np.tan(np.deg2rad(field_of_view) / 2)
        return cls(np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]), pose, size)

    @property
    def extrinsics(self) -> Matrix:
        """(4, 4) world to camera."""
        return np.asarray(np.linalg.inv(self.pose), np.float64)

    def directions(self) -> Matrix:
        """(3, 3) matrix D: a pixel (u, v) sees along D @ (u, v, 1) in the world, scaled so that depth is the factor."""
        return np.asarray(self.pose[:3, :3] @ np.linalg.inv(self.intrinsics), np.float64)

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 3) world points, or (..., 4) homogeneous ones, as (..., 3): u, v in pixels and depth in metres."""
        if points.shape[-1] == 3:
            points = np.concatenate([points, np.ones_like(points[..., :1])], -1)
        seen = points @ (self.intrinsics @ self.extrinsics[:3]).T
        depth = seen[..., 2:]
        safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
        return np.concatenate([seen[..., :2] / safe, depth], -1)

    def unproject(self, depth: NDArray[np.floating]) -> NDArray[np.float64]:
        """(height, width) depth as (height, width, 4) homogeneous world points; infinite depth as a direction."""
        v, u = np.mgrid[: depth.shape[0], : depth.shape[1]].astype(np.float64)
        rays = np.stack([u, v, np.ones_like(u)], -1) @ self.directions().T
        finite = np.isfinite(depth)[..., None]
        near = np.where(finite, depth[..., None], 1.0)
        points = rays * near + np.where(finite, self.pose[:3, 3], 0.0)
        return np.concatenate([points, finite.astype(np.float64)], -1)
