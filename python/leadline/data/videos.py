"""Frames and clips of videos as samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leadline.data.inputs import Input
from leadline.data.preprocess import Preprocess, Unreadable
from leadline.data.samples import Item, Spool
from leadline.types import InputError

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
FRAMES = 32
"""Frames, or clips, taken of a video where no limit is given."""


def samples(
    path: Path, count: int, item: Input, preprocess: Preprocess, spool: Spool, clip: int | None = None
) -> list[Item]:
    """`count` frames, evenly spread from the first to the last (all where there are fewer), decoded once and spooled.

    With `clip`, as many clips of so many consecutive frames, along a new second axis. Raises InputError where PyAV is
    not installed, Unreadable where the file is no video, or shorter than a clip.
    """
    try:
        import av
        from PIL import Image
    except ImportError as error:
        message = f"[load_samples] a video needs PyAV: pip install 'leadline[video]'. Received {path}."
        raise InputError(message) from error

    length = clip or 1
    try:
        with av.open(str(path)) as container:
            # Containers often misstate their length; counting packets reads the file but decodes nothing.
            total = sum(packet.size > 0 for packet in container.demux(video=0))
        if 0 < total < length:
            raise Unreadable(f"{total} frames, fewer than the {length} of a clip")
        starts = set(np.linspace(0, total - length, min(count, total - length + 1)).round().astype(int).tolist())
        wanted = {start + frame for start in starts for frame in range(length)}
        items: list[Item] = []
        seen: dict[int, np.ndarray] = {}  # of the last `length` frames, those that are wanted
        with av.open(str(path)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                seen.pop(index - length, None)
                if index in wanted:
                    seen[index] = preprocess(Image.fromarray(frame.to_ndarray(format="rgb24")), item.dtype)
                start = index - length + 1
                if start in starts:
                    label = f"{path}[{index}]" if clip is None else f"{path}[{start}:{index + 1}]"
                    feed = seen[index] if clip is None else np.stack([seen[start + i] for i in range(length)], 1)
                    items.append(spool.add(label, {item.name: feed}))
                if len(items) == len(starts):
                    break
    except (av.FFmpegError, IndexError) as error:
        raise Unreadable(f"not a video that PyAV can read ({error})") from error
    if not items:
        raise Unreadable("a video without frames")
    return items
