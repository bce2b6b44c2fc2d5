"""A sweep on a Ray cluster of two nodes, in processes of this machine, and one of them that dies."""

from __future__ import annotations

import pytest

from leadline.sweep import run
from leadline.sweep.driver import Nobody
from leadline.sweep.engines import Ray, _measure
from ray_nodes import two_nodes
from small_sweeps import VARY, Inline, figures, small

ray = pytest.importorskip("ray", reason="needs pip install 'leadline[ray]'")

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]  # ray leaves sockets and processes to exit

LARGE = {"vary": [VARY | {"steps.calibrate.weights": ["minmax", "mse", "sqnr"]}]}


@pytest.fixture
def cluster():
    with two_nodes() as nodes:
        yield nodes


class Noting(Ray):
    """Notes on which node each cell was computed."""

    def __init__(self, folder, notes):
        super().__init__(1, folder)
        notes.mkdir()

        def noting(cell, *rest):
            node = ray.get_runtime_context().get_node_id()
            (notes / f"{cell.key}-{node}").touch()
            return _measure(cell, *rest)

        self._measure = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(noting)


def test_two_nodes_share_a_sweep(tmp_path, cluster):
    sweep = small(tmp_path, **LARGE)
    whole = figures(run(sweep, tmp_path / "whole", engine=Inline()))
    engine = Noting(tmp_path / "shared", tmp_path / "notes")
    assert engine.slots == 2
    seen = []

    class Seeing(Nobody):
        def progress(self, job, what, done, total):
            seen.append((job, what, done, total))

    done = run(sweep, tmp_path / "out", engine=engine, watcher=Seeing())
    assert {job for job, *_ in seen} and all(0 <= done <= total for _, _, done, total in seen)
    notes = [note.name.split("-") for note in (tmp_path / "notes").iterdir()]
    assert figures(done) == whole and len(notes) == 12
    assert len({node for _, node in notes}) == 2


def test_a_node_that_dies_takes_no_cell_with_it(tmp_path, cluster):
    sweep = small(tmp_path, **LARGE)
    whole = figures(run(sweep, tmp_path / "whole", engine=Inline()))

    class Killer(Nobody):
        ends = 0

        def ended(self, job, cell, state, figures, error):
            self.ends += 1
            if self.ends == 3:
                cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)

    done = run(sweep, tmp_path / "out", engine="ray", threads=1, watcher=Killer())
    assert figures(done) == whole and done.failed == []
