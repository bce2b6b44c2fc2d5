"""Depth: rendered scenes, networks that come with leadline, metrics and the signs of collapse."""

from leadline.depth.collapse import collapsed
from leadline.depth.metrics import Agreement, DepthScores, align, boundary_f1, compare, score
from leadline.depth.scenes import Camera, Frame

__all__ = ["Agreement", "Camera", "DepthScores", "Frame", "align", "boundary_f1", "collapsed", "compare", "score"]
