"""Depth: rendered scenes, networks that come with leadline, metrics and the signs of collapse."""

from leadline.depth.collapse import collapsed
from leadline.depth.folders import DepthFolder, load_kitti, load_nyu
from leadline.depth.metrics import Agreement, DepthScores, align, boundary_f1, compare, score
from leadline.depth.scenes import Camera, Frame

__all__ = [
    "Agreement",
    "Camera",
    "DepthFolder",
    "DepthScores",
    "Frame",
    "align",
    "boundary_f1",
    "collapsed",
    "compare",
    "load_kitti",
    "load_nyu",
    "score",
]
