"""Layers rounded on a Ray cluster of two nodes, in processes of this machine: the same bytes as without."""

from __future__ import annotations

import pytest

from leadline import quantize
from leadline.types import InputError
from leadline.workers import Cluster
from ray_nodes import two_nodes
from small_networks import draw
from small_transformer import transformer

ray = pytest.importorskip("ray", reason="needs pip install 'leadline[ray]'")

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]  # ray leaves sockets and processes to exit


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with two_nodes() as nodes:
        yield nodes


@pytest.mark.parametrize("recipe", ["w4a8", "adaround-w8a8"])
def test_two_nodes_give_the_bytes_of_one_process(recipe):
    data = [draw(i, *transformer().inputs[0].shape, spread=1.0) for i in range(12)]
    local, shared = (quantize(transformer(), recipe, data, threads=1, engine=name) for name in ("local", "ray"))
    assert shared.to_qdq().SerializeToString() == local.to_qdq().SerializeToString()
    assert shared.log == local.log


def test_both_nodes_work_and_answers_come_in_order():
    def where(item):
        import time

        time.sleep(0.5)
        return item * 2, ray.get_runtime_context().get_node_id()

    found = list(Cluster().each(where, iter(range(8))))
    assert [(item, double) for item, (double, _) in found] == [(i, 2 * i) for i in range(8)]
    assert len({node for _, (_, node) in found}) == 2


def test_an_error_on_a_machine_is_the_users():
    def fails(item):
        raise InputError(f"item {item} is wrong")

    with pytest.raises(InputError, match="item 3 is wrong"):
        list(Cluster().each(fails, [3]))
