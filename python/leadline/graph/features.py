"""What tells samples apart inside a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.graph.ir import Graph
from leadline.graph.operators import by_channel, channel_axes
from leadline.graph.session import Session
from leadline.types import FloatArray, refuse

Feed = Mapping[str, NDArray[Any]]


def network_features(graph: Graph, tensor: str, threads: int | None = None) -> Callable[[Feed], FloatArray]:
    """Features for ``leadline.data.choose`` from inside a network: what each channel of a tensor does to a sample.

    Parameters
    ----------
    graph : Graph
    tensor : str
        Written by a node of the graph, such as the last one of an encoder. Names are the graph's, which are also the
        artefacts'; the file that it was loaded from may have others.
    threads : int, optional
        Of onnxruntime. Default: all.

    Returns
    -------
    callable from feed to (2 * channels,) float32
        Mean and standard deviation of each channel. See `operators.channel_axes` for where channels lie.

    Raises
    ------
    InputError
        No node writes such a tensor; similar names are given.
    """
    names = [name for node in graph.nodes for name in node.outputs]
    if tensor not in names:
        similar = ", ".join(get_close_matches(tensor, names, 3, 0))
        raise refuse("network_features", f"tensor must be one that a node writes, such as {similar}", repr(tensor))
    session, axis = Session(graph, [tensor], threads=threads), channel_axes(graph)[tensor]

    def features(feed: Feed) -> FloatArray:
        rows = by_channel(session.run(feed)[tensor], axis)
        return np.concatenate([rows.mean(1, np.float64), rows.std(1, np.float64)]).astype(np.float32)

    return features
