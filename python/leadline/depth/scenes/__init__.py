"""Rendered rooms and streets with exact depth, for calibration, training and tests that need no download.

    from leadline.depth import scenes

    frame = scenes.views(seed=7, count=1)[0]     # rgb, depth in metres, camera
    clip = scenes.clip(seed=7, frames=32)        # the camera moves
    flow, visible = scenes.flow(clip[0], clip[1])
    pair = scenes.pair(seed=7)                   # (1, 2, 3, height, width), two neighbouring views

The same seed gives the same scene and cameras. Even seeds are rooms, odd ones streets.
"""

from __future__ import annotations

from leadline.depth.scenes.camera import Camera
from leadline.depth.scenes.disturb import disturbed
from leadline.depth.scenes.motion import FIELD_OF_VIEW, SIZE, clip, flow, pair, views, world
from leadline.depth.scenes.render import Frame, Light, World
from leadline.depth.scenes.solids import Look, Solids
from leadline.depth.scenes.write import write_blendedmvs

__all__ = [
    "FIELD_OF_VIEW",
    "SIZE",
    "Camera",
    "Frame",
    "Light",
    "Look",
    "Solids",
    "World",
    "clip",
    "disturbed",
    "flow",
    "pair",
    "views",
    "world",
    "write_blendedmvs",
]
