"""What a run will need is known before its first step."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import train_tiny
from sizes import around
from test_methods import LOSS
from torch import Tensor, nn
from torch._utils import ExceptionWrapper
from trait_methods import Adversarial, NoOptions

from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, build_config, merge_layers
from ssl_seg.data.catalog import Catalog, open_catalog
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.splits.split import Split, make_split
from ssl_seg.engine.engine import Engine
from ssl_seg.errors import DataError, MachineError, RunDirError
from ssl_seg.inference.model import config_of, make_network
from ssl_seg.methods import make_method
from ssl_seg.methods.base import build
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run import finish, resources
from ssl_seg.run.directory import RunDir
from ssl_seg.run.failures import explain_failure
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resources import (
    check_disk,
    check_memory,
    check_shared_memory,
    count_possible_workers,
    estimate_case_bytes,
    estimate_output_bytes,
    estimate_shared_bytes,
)
from ssl_seg.run.training import train


def make_config(**data: Any) -> Config:
    patch = [8] * len(data.get("resample_to", (1, 1)))
    planned = {"patch_size": patch, "channels": 1, "label_values": [0, 1], "foreground_ratio": 0.0, **data}
    settings = {"data": planned, "network": {"name": "basic_unet"}, "batch": {"labeled": 1, "unlabeled": 1},
                "length": {"steps": 100}}  # fmt: skip
    return build_config(merge_layers([Layer("--test", settings)]))[0]


def make_facts(shape: tuple[int, ...], dtype: str, spacing: tuple[float, ...] | None = None) -> CaseFacts:
    return CaseFacts(shape, 1, dtype, (0, 1), 0.5, "0" * 16, (1, 1), spacing)


class TestMemory:
    def test_is_that_of_the_arrays(self) -> None:
        shape = (20, 30)
        image, target = np.empty((3, *shape), np.uint16), np.empty(shape, np.int16)
        normalized, weights = np.empty((3, *shape), np.float32), np.empty(shape, np.float32)
        scored, predicted = np.empty((4, *shape), np.float32), np.empty((4, *shape), np.float32)
        expected = sum(a.nbytes for a in (image, target, normalized, weights, scored, predicted))
        config = make_config(channels=3, label_values=[0, 1, 2, 7])
        assert estimate_case_bytes(make_facts(shape, "uint16"), config) == expected

    def test_of_a_resampled_case_is_on_both_grids(self) -> None:
        config = make_config(resample_to=(1.0, 1.0, 1.0))
        shape, fine = (10, 20, 30), (20, 20, 30)
        image, target, scored = np.empty(shape, np.uint8), np.empty(shape, np.int16), np.empty((2, *shape), np.float32)
        inside = np.empty((1 + 2 + 1, *fine), np.float32)
        expected = sum(a.nbytes for a in (image, target, scored, inside))
        assert estimate_case_bytes(make_facts(shape, "uint8", (2.0, 1.0, 1.0)), config) == expected

    @pytest.fixture
    def cases(self, particles_dir: Path) -> tuple[Catalog, Split]:
        catalog = open_catalog(str(particles_dir))
        return catalog, make_split(catalog, [1.0])

    @pytest.mark.parametrize(
        "source", ["ssl_seg.run.resources.available_memory", "ssl_seg.data.formats.stored.physical_memory"]
    )
    @pytest.mark.parametrize(("more", "fits"), [(-1, False), (0, True), (1, True), (10**9, True)])
    def test_the_largest_validation_case_has_to_fit(
        self, cases: tuple[Catalog, Split], monkeypatch: pytest.MonkeyPatch, source: str, more: int, fits: bool
    ) -> None:
        catalog, split = cases
        config = make_config()
        needed = max(estimate_case_bytes(catalog.facts[i], config) for i in split.val)
        monkeypatch.setattr(source, lambda: needed + more)
        if fits:
            check_memory(config, catalog, split)
            return
        with pytest.raises(DataError) as raised:
            check_memory(config, catalog, split)
        assert f"{needed:,} bytes, and {needed - 1:,} are available" in str(raised.value)
        assert any(f"'{i}' (" in str(raised.value) for i in split.val)

    def test_it_is_known_before_the_first_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Volumes that are read by box in training, and are larger than the memory."""
        for folder in ("images", "masks"):
            (tmp_path / "data" / folder).mkdir(parents=True)
        rng = np.random.default_rng(0)
        for case in range(4):
            volume = rng.integers(0, 255, (32, 64, 64)).astype(np.uint8)
            np.save(tmp_path / "data" / "images" / f"{case}.npy", volume)
            np.save(tmp_path / "data" / "masks" / f"{case}.npy", (volume > 200).astype(np.uint8))
        monkeypatch.setattr("ssl_seg.data.formats.stored.physical_memory", lambda: 2**20)
        monkeypatch.setattr(Engine, "step", lambda *_, **__: pytest.fail("a step was made"))
        settings = {"data": {"patch_size": [32, 32, 32], "cache_mb": 1}}
        with pytest.raises(DataError, match=r"validation cases do not fit into memory: '\d' \(32x64x64, 1 channel"):
            train_tiny(tmp_path / "run", tmp_path / "data", settings)
        assert not (tmp_path / "run").exists()


class TestDisk:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"monitor": {"keep_best": 2}, "optim": {"name": "sgd"}},
            {"policies": {"swa": {"start_epoch": 1}}},
            {"monitor": {"on_collapse": "recover"}},
            {"length": {"steps": 12, "steps_per_epoch": 6, "snapshots": 3}},
        ],
    )
    def test_is_about_that_of_the_files(self, settings: dict[str, Any], particles_dir: Path, tmp_path: Path) -> None:
        run = train_tiny(tmp_path / "run", particles_dir, settings).run
        config = config_of(load_checkpoint(run.last), run.last)
        files = sum(p.stat().st_size for p in run.path.rglob("*") if p.is_file())
        supervised = make_method("supervised", {}, LOSS, 2)
        estimated = estimate_output_bytes(build(supervised, partial(make_network, config), 2), config)
        assert files <= estimated
        largest = max(p.stat().st_size for p in run.last.parent.iterdir())
        assert estimated <= 1.3 * (files + largest) + 2**20

    def test_what_a_method_keeps_and_trains_by_itself_counts(self) -> None:
        """A discriminator of one 3x3 convolution of two channels, with its optimizer's two moments, in each file."""
        config = make_config()
        both = [make_method("supervised", {}, LOSS, 2), Adversarial(NoOptions(), LOSS, 2)]
        plain, own = (estimate_output_bytes(build(method, lambda: nn.Linear(2, 2), 2), config) for method in both)
        files = 1 + config.monitor.keep_best + 1  # last.pt, the best ones, and one being written
        assert own - plain == files * 3 * 4 * (2 * 9 + 1)

    @pytest.mark.parametrize(
        ("needed", "held", "fits"),
        [
            (999, 0, True),
            (1000, 0, True),
            (1001, 0, False),
            (9000, 0, False),
            (9000, 8000, True),
            (9000, 7999, False),
            (500, 900, True),
        ],
    )
    def test_what_is_missing_has_to_fit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, held: int, fits: bool
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000) if path == tmp_path else None)
        if fits:
            check_disk(tmp_path / "runs" / "a", needed, held)
            return
        with pytest.raises(RunDirError, match=f"take {needed - held:,} bytes, and 1,000 are free"):
            check_disk(tmp_path / "runs" / "a", needed, held)

    def test_it_is_known_before_the_first_step_and_when_a_run_goes_on(
        self, tiny_run: Path, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = RunDir(Path(shutil.copytree(tiny_run, tmp_path / "run")))
        run.best.unlink()
        (run.path / "events.jsonl").write_text("")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(RunDirError, match=r"the disk of .*new is too full"):
            train_tiny(tmp_path / "new", particles_dir)
        assert not (tmp_path / "new").exists()
        with pytest.raises(RunDirError, match=r"the disk of .*run is too full"):
            train(TrainRequest(resume=run.path))
        assert (run.path / "events.jsonl").read_text() == ""


def test_an_error_of_a_loader_process_is_told_without_its_traceback() -> None:
    message = "images/7.png cannot be read: cut off.\nReplace it: see above"
    try:
        try:
            raise DataError("another")
        except DataError as error:
            raise DataError(message) from error
    except DataError:
        passed = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(DataError, match="Traceback") as caught:
        passed.reraise()
    told = explain_failure(caught.value, None, None, None)  # type: ignore[arg-type]
    assert isinstance(told, DataError)
    assert str(told) == message
    assert explain_failure(DataError(message), None, None, None) is None  # type: ignore[arg-type]


class TestSharedMemory:
    def test_is_that_of_the_batches_of_the_workers(self) -> None:
        config = make_config(channels=3, resample_to=(1.0, 1.0))
        labeled = np.empty((1, 3, 8, 8), np.float32).nbytes + np.empty((1, 8, 8), np.int64).nbytes
        unlabeled = 3 * np.empty((1, 3, 8, 8), np.float32).nbytes  # weak and two strong views
        assert estimate_shared_bytes(config, 2, workers=2) == 5 * (labeled + unlabeled)
        assert estimate_shared_bytes(config, 2, workers=0) == 0

    def test_it_has_to_fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = make_config(channels=3, resample_to=(1.0, 1.0))
        needed = estimate_shared_bytes(config, 2, workers=2)
        monkeypatch.setattr(resources, "SHARED_MEMORY", tmp_path)
        for free in around(needed):
            monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
            check_shared_memory(config, 2, workers=0)
            if free >= needed:
                check_shared_memory(config, 2, workers=2)
                continue
            with pytest.raises(MachineError, match=f"take {needed:,} bytes of .*, and {free:,} are free: set runtime"):
                check_shared_memory(config, 2, workers=2)
        monkeypatch.setattr(resources, "SHARED_MEMORY", tmp_path / "none")  # not every system has one
        check_shared_memory(config, 2, workers=2)

    @pytest.mark.parametrize(
        ("threads", "memory_gib", "batches", "possible"),
        [(16, 64, 99, 15), (3, 64, 99, 2), (1, 64, 99, 0), (16, 13, 99, 3), (16, 1, 99, 0), (16, None, 99, 15),
         (16, 64, 9, 4), (16, 64, 8, 3), (16, 64, 2, 0)],
    )  # fmt: skip
    def test_as_many_processes_as_threads_memory_and_shared_memory_have_room_for(
        self, threads: int, memory_gib: int | None, batches: int, possible: int, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        config = make_config(channels=3, resample_to=(1.0, 1.0))
        assert config.data.cache_mb == 2048
        free = estimate_shared_bytes(config, 2, workers=1) // 3 * batches
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(resources, "available_memory", lambda: memory_gib and memory_gib * 2**30)
        monkeypatch.setattr(resources, "SHARED_MEMORY", tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        assert count_possible_workers(config, 2) == possible
        check_shared_memory(config, 2, possible)

    def test_it_is_known_before_the_first_step(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resources, "count_cores", lambda: 2)
        monkeypatch.setattr(resources, "SHARED_MEMORY", tmp_path)
        monkeypatch.setattr(resources, "estimate_shared_bytes", lambda *_: 2**70)
        with pytest.raises(MachineError, match=r"runtime\.workers = 2: their batches"):
            train_tiny(tmp_path / "new", particles_dir, {"runtime": {"workers": 2}})
        assert not (tmp_path / "new").exists()

    def test_a_training_ends_where_another_program_fills_it(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def share(tensor: Tensor) -> Tensor:
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"
            )

        monkeypatch.setattr(Tensor, "share_memory_", share)  # loader processes are forked, and have it too
        with pytest.raises(MachineError, match=r"/dev/shm.* is full.*continue with `ssl-seg train --resume .*run`"):
            train_tiny(tmp_path / "run", particles_dir, {"runtime": {"workers": 1}})

    def test_statistics_of_averaged_weights_are_estimated_with_no_more_processes_than_cores(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = list[int]()
        real = finish.make_loader

        def load(source: Any, start: int, stop: int, workers: int, *, pin_memory: bool) -> Any:
            asked.append(workers)
            return real(source, start, stop, 0, pin_memory=pin_memory)

        monkeypatch.setattr(finish, "make_loader", load)
        monkeypatch.setattr(resources, "count_cores", lambda: 1)
        settings = {"policies": {"swa": {"start_epoch": 1}}, "network": {"norm": "batch"}, "runtime": {"workers": 4}}
        train_tiny(tmp_path / "run", particles_dir, settings)
        assert asked == [1]
