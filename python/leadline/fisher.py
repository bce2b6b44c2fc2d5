"""The output side of K-FAC without gradients: how much a network's outputs depend on what a layer writes, measured by
disturbing it in onnxruntime, which runs forwards only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadline.data import Samples
from leadline.graph import Graph, Layer, Session
from leadline.graph.operators import layer_axis
from leadline.graph.segments import behind
from leadline.types import refuse

ELEMENTS = 1 << 16
"""Of each output tensor so many elements are looked at, at most, evenly spaced."""


def output_factor(
    graph: Graph,
    layer: Layer,
    samples: Samples,
    *,
    probes: int = 64,
    step: float = 0.02,
    seed: int = 0,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """F = E[sum over positions p of J_p^T J_p], with J_p the derivative of the network's outputs by the layer's output
    channels at position p: what `leadline.rounding.descend` takes as `fisher`.

    It is the Gauss-Newton matrix of the outputs' squared error, each output in units of its own energy. For each sample
    a direction u over the channels is added to the layer's output, with a random sign at each position; the products
    of the changes that two directions cause have u^T F v as their mean, as positions cancel (Hutchinson, 1990). With
    fewer directions than channels F is known in a random subspace, and taken to be isotropic in the rest.

    Parameters
    ----------
    graph : Graph
    layer : Layer
        One of ``graph.layers()``.
    samples : Samples
        `probes` + 1 runs of what follows the layer for each.
    probes : int
        Directions at most.
    step : float
        Length of a direction at each position over the root mean square of the layer's output.
    seed : int
        Of directions and signs.
    threads : int, optional
        Of onnxruntime.

    Returns
    -------
    float64 (channels, channels), symmetric and positive semi-definite.

    Raises
    ------
    InputError
        `probes` or `step` is not positive, or no output of the network depends on the layer.
    """
    if probes < 1:
        raise refuse("output_factor", "probes must be at least 1", probes)
    if not (np.isfinite(step) and step > 0):
        raise refuse("output_factor", "step must be a finite number above 0", step)
    part = behind(graph, layer.output)
    if not part.outputs:
        raise refuse("output_factor", "an output of the network must depend on the layer", layer.name)
    shape = graph.shape(layer.output)
    axis = layer_axis(layer) % len(shape)
    channels = shape[axis]
    rng = np.random.default_rng(seed)
    count = min(probes, channels)
    directions = np.eye(channels)
    if count < channels:
        directions = np.linalg.qr(rng.standard_normal((channels, count)))[0].T
    products = np.zeros((count, count))
    ends = {value.name for value in graph.inputs}
    names = [value.name for value in part.inputs if value.name not in ends]
    with Session(graph, names, threads=threads) as front, Session(part, threads=threads) as back:
        for feed in samples:
            known = {name: feed[name] for name in ends}
            inputs = front.run(known) | {value.name: known[value.name] for value in part.inputs if value.name in ends}
            usual = _looked_at(back.run(inputs))
            energy = np.concatenate([np.full(v.size, np.sum(v**2) or 1.0) for v in usual])
            before = np.concatenate(usual)
            written = inputs[layer.output].astype(np.float64)
            length = step * np.sqrt(np.mean(written**2)) or step
            signs = rng.choice([-1.0, 1.0], [1 if i == axis else size for i, size in enumerate(shape)])
            changes = []
            for u in directions:
                moved = written + length * signs * u.reshape([-1 if i == axis else 1 for i in range(len(shape))])
                after = np.concatenate(_looked_at(back.run(inputs | {layer.output: moved.astype(np.float32)})))
                changes.append((after - before) / np.sqrt(energy))
            derivatives = np.stack(changes) / length
            products += derivatives @ derivatives.T
    products /= len(samples)
    factor = directions.T @ products @ directions
    if count < channels:
        factor += np.trace(products) / count * (np.eye(channels) - directions.T @ directions)
    return (factor + factor.T) / 2


def _looked_at(outputs: dict[str, NDArray[Any]]) -> list[NDArray[np.float64]]:
    """Up to ELEMENTS of each output, in a row."""
    return [v.ravel()[:: -(-v.size // ELEMENTS)].astype(np.float64) for v in outputs.values()]
