"""Where the parts of one run's work are done: in this process, or on the machines of a Ray cluster."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from leadline.cache import environment
from leadline.types import refuse

Item = TypeVar("Item")
Result = TypeVar("Result")

LIVES = 3
"""Workers that may die over one piece of work."""


class Workers(Protocol):
    """Does pieces of work that know nothing of each other."""

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Every item with what the function makes of it, in order; the first error ends it."""
        ...


class Here:
    """One after the other, in this process; an item is asked for when its turn comes."""

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        for item in items:
            yield item, function(item)


class Cluster:
    """The machines of a Ray cluster: the one that RAY_ADDRESS names, or that runs here, or one of this machine alone.

    leadline must be the same on all of them, and is compared. Each piece of work gets `threads` processors.

    Raises
    ------
    InputError : Ray is not installed.
    """

    def __init__(self, threads: int = 1, asked_by: str = "quantize") -> None:
        try:
            import ray
        except ImportError:
            raise refuse(asked_by, "engine ray needs pip install 'leadline[ray]'", "no ray") from None
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")
        self.ray, self.threads = ray, threads
        self.slots = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)

    def remote(self, function: Callable[..., Any], retries: int = 0) -> Any:
        """A function for the machines to run; `retries` when its worker dies."""
        threads = str(self.threads)
        variables = {"env_vars": {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}}
        return self.ray.remote(num_cpus=self.threads, max_retries=retries, runtime_env=variables)(function)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """In order; a few items more than there are processors are on their way at once."""
        work, code = self.remote(_alike, LIVES - 1), environment()
        begun: deque[tuple[Item, Any]] = deque()
        try:
            for item in items:
                begun.append((item, work.remote(function, item, code)))
                if len(begun) > 2 * self.slots:
                    yield self._ended(*begun.popleft())
            while begun:
                yield self._ended(*begun.popleft())
        finally:
            for _, reference in begun:
                self.ray.cancel(reference, force=True)

    def _ended(self, item: Item, reference: Any) -> tuple[Item, Any]:
        try:
            return item, self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error


def _alike(function: Callable[[Item], Result], item: Item, code: str) -> Result:
    """Runs on a machine of the cluster, if that computes as the one that asks."""
    if environment() != code:
        rule = "leadline, numpy, onnx and onnxruntime must be the same on every machine of the Ray cluster"
        raise refuse("quantize", rule, f"other ones on {platform.node()}")
    return function(item)


def workers_of(engine: str, threads: int | None) -> Workers:
    """ "local": this process; "ray": the cluster, each piece with so many threads (default 1)."""
    if engine not in ("local", "ray"):
        raise refuse("quantize", "engine must be local or ray", repr(engine))
    return Here() if engine == "local" else Cluster(threads or 1)
