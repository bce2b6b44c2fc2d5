"""The depth part of a comparison's report: figures for the JSON, pictures for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from leadline.report import charts
from leadline.report.pictures import depth_map, depth_scale, error_map, over_time, strip, uri

if TYPE_CHECKING:
    from leadline.comparison import Comparison
    from leadline.evaluation import Footage, Judgement

STILLS = 4
"""Pictures shown of footage that is no video."""

PROFILES = {
    "alignment_error": "temporal alignment error, %",
    "warped_change": "change along the flow, %",
    "flicker": "flicker against the float network, %",
}


def figures(comparison: Comparison) -> dict[str, Any]:
    """What was judged, and the float network's figures; each run holds its own."""
    return {
        "footage": [
            {
                "frames": len(footage.frames),
                "video": footage.video,
                "inverse": footage.inverse,
                "alignment": footage.alignment,
                "far": footage.far,
            }
            for footage in comparison.footage
        ],
        "float": [judgement.to_dict() for judgement in comparison.floats],
    }


def footage_pictures(comparison: Comparison) -> list[dict[str, Any]]:
    """For each footage: its pictures as data URIs, and for videos charts of the temporal profiles."""
    shown = []
    for i, footage in enumerate(comparison.footage):
        networks = {"float": comparison.floats[i]} | {run.name: run.judgements[i] for run in comparison.runs}
        shown.append(_video(footage, networks) if footage.video else _stills(footage, networks))
    return shown


def _stills(footage: Footage, networks: dict[str, Judgement]) -> dict[str, Any]:
    chosen = np.linspace(0, len(footage.frames) - 1, min(STILLS, len(footage.frames))).round().astype(int)
    rows = []
    for i in chosen:
        frame = footage.frames[i]
        scale = depth_scale(frame.depth, footage.far)
        rows.append(
            {
                "picture": uri(frame.rgb, photograph=True),
                "truth": uri(depth_map(frame.depth, scale)),
                "near": 1 / scale[1],
                "far": 1 / max(scale[0], 1 / footage.far),
                "panels": [
                    {
                        "name": name,
                        "depth": uri(depth_map(judged.depth[i], scale)),
                        "error": uri(error_map(judged.depth[i], frame.depth, footage.far)),
                    }
                    for name, judged in networks.items()
                ],
            }
        )
    return {"video": False, "rows": rows}


def _video(footage: Footage, networks: dict[str, Judgement]) -> dict[str, Any]:
    scale = depth_scale(footage.truth, footage.far)
    rows = [{"name": "picture", **_row([frame.rgb for frame in footage.frames], photograph=True)}]
    rows.append({"name": "truth", **_row([depth_map(depth, scale) for depth in footage.truth])})
    for name, judged in networks.items():
        rows.append({"name": name, **_row([depth_map(depth, scale) for depth in judged.depth])})
    profiles = []
    for key, unit in PROFILES.items():
        series = {name: judged.temporal[key].tolist() for name, judged in networks.items() if key in judged.temporal}
        if series and charts.available():
            profiles.append(charts.profile(series, unit))
    return {"video": True, "rows": rows, "profiles": profiles}


def _row(frames: list[Any], photograph: bool = False) -> dict[str, str]:
    return {"strip": uri(strip(frames), 960, photograph), "slice": uri(over_time(frames), 400, photograph)}
