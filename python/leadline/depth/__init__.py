"""Depth: rendered scenes, networks that come with leadline, metrics and the signs of collapse."""

from leadline.depth.collapse import collapsed
from leadline.depth.folders import DepthFolder, load_kitti, load_nyu
from leadline.depth.metrics import DepthScores, DepthSimilarity, align, boundary_f1, score, similarity
from leadline.depth.scenes import Camera, Frame

__all__ = [
    "Camera",
    "DepthFolder",
    "DepthScores",
    "DepthSimilarity",
    "Frame",
    "align",
    "boundary_f1",
    "collapsed",
    "load_kitti",
    "load_nyu",
    "score",
    "similarity",
]
