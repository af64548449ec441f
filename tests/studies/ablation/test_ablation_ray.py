"""A cluster of two nodes on this machine: one is killed while cells train."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ablation_cases import WANTED, write_spec
from conftest import TINY

from ssl_seg.errors import ConfigError
from ssl_seg.studies.ablation.cells import open_folder, read_result, write_cells
from ssl_seg.studies.ablation.execute import CellState, execute
from ssl_seg.studies.ablation.launchers import connect, make_ray_launcher
from ssl_seg.studies.ablation.resolve import resolve_cells
from ssl_seg.studies.ablation.spec import read_spec

STEPS = 48


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and another node, with a core each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ssl-seg[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(**node)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
def test_a_killed_node_loses_no_finished_cell(cluster: Any, tmp_path: Path, particles_dir: Path) -> None:
    settings = {**TINY, "data": {**TINY["data"], "root": str(particles_dir)}}
    settings["length"] = {"steps": STEPS, "steps_per_epoch": 6}
    few = {"settings": settings, "labels": [0.2, 0.5, 1.0], "methods": ["supervised"]}
    cells = resolve_cells(read_spec(str(write_spec(tmp_path / "spec.yaml", particles_dir, **few))), gpu=False)
    out = tmp_path / "out"
    write_cells(out, cells)
    finished: dict[str, int] = {}
    lost: list[str] = []

    def kill_a_node(states: Sequence[CellState]) -> None:
        """Kill a node once a cell is finished and another one trains."""
        done = [s.cell.id for s in states if s.stage == "done"]
        busy = [s.cell.id for s in states if s.stage == "running" and 0 < s.step < STEPS - 8]
        if not lost and done and busy:
            finished.update((i, open_folder(out, i).score(WANTED).stat().st_mtime_ns) for i in done)
            lost.extend(busy)
            (node,) = cluster.worker_nodes
            cluster.remove_node(node, allow_graceful=False)

    execute(cells, out, WANTED, make_ray_launcher(cluster.address, num_cpus=1, num_gpus=0), kill_a_node)
    assert lost
    assert [read_result(out, cell, WANTED).status for cell in cells] == ["done"] * 3
    for cell_id, written in finished.items():  # not trained, and not even scored again
        assert open_folder(out, cell_id).score(WANTED).stat().st_mtime_ns == written
        assert [e["event"] for e in open_folder(out, cell_id).run.read_events()].count("started") == 1


@pytest.mark.slow
def test_a_cell_that_no_node_can_hold_is_refused(cluster: Any) -> None:
    with pytest.raises(ConfigError, match=r"no node .* 64 CPUs and 0 GPUs"):
        make_ray_launcher(cluster.address, num_cpus=64, num_gpus=0)
    with pytest.raises(ConfigError, match=r"no node .* 1 CPUs and 0.5 GPUs"):
        make_ray_launcher(cluster.address, num_cpus=1, num_gpus=0.5)


def test_an_unreachable_address_is_told_before_ray_tries_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ssl-seg[ray]'")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"--ray {address}: no Ray cluster answers there .*refused.*ray start"):
            connect(address)
