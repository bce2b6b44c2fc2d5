"""Frames of videos as samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leadline.data.inputs import Input
from leadline.data.preprocess import Preprocess, Unreadable
from leadline.data.samples import Item, Spool
from leadline.types import InputError

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
FRAMES = 32
"""Frames taken of a video where no limit is given."""


def samples(path: Path, count: int, item: Input, preprocess: Preprocess, spool: Spool) -> list[Item]:
    """`count` frames, evenly spread from the first to the last (all where there are fewer), decoded once and spooled.

    Raises InputError where PyAV is not installed, Unreadable where the file is no video.
    """
    try:
        import av
        from PIL import Image
    except ImportError as error:
        message = f"[load] a video needs PyAV: pip install 'leadline[video]'. Received {path}."
        raise InputError(message) from error

    try:
        with av.open(str(path)) as container:
            # Containers often misstate their length; counting packets reads the file but decodes nothing.
            total = sum(packet.size > 0 for packet in container.demux(video=0))
        wanted = set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
        items = []
        with av.open(str(path)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                    feed = {item.name: preprocess(picture, item.dtype)}
                    items.append(spool.add(f"{path}[{index}]", feed))
                if len(items) == len(wanted):
                    break
    except (av.FFmpegError, IndexError) as error:
        raise Unreadable(f"not a video that PyAV can read ({error})") from error
    if not items:
        raise Unreadable("a video without frames")
    return items
