"""The metrics that a sweep knows."""

from __future__ import annotations

from typing import Literal

DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "sqnr": "maximize",
    "delta1": "maximize",
    "abs_rel": "minimize",
    "rmse": "minimize",
    "edge_f1": "maximize",
    "pearson": "maximize",
    "ssim": "maximize",
    "alignment_error": "minimize",
    "warped_change": "minimize",
    "flicker": "minimize",
    "collapsed": "minimize",
    "size": "minimize",
    "seconds": "minimize",
}
"""Every metric, and which way is better."""

WHOLE = ("size", "seconds")
"""Metrics of the artefact and the run, not of an evaluation."""
