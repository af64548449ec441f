"""Large images are predicted in pieces on disk: what is written does not depend on who makes which piece, and when."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import Cli
from forking import SERVER
from numpy.typing import NDArray
from sizes import around
from test_cli import assert_refused

from ssl_seg.data.formats import nifti
from ssl_seg.data.formats import tiff as tiff_module
from ssl_seg.data.formats.stored import LazyArray
from ssl_seg.data.nodata import FEWEST
from ssl_seg.data.volumes import open_image, read_mask, write_mask, write_probabilities
from ssl_seg.errors import ConfigError, DataError, MachineError, counted
from ssl_seg.files import is_disk_full
from ssl_seg.inference.sliding import Predictor
from ssl_seg.networks.checkpoint import load_checkpoint, save_checkpoint
from ssl_seg.results import claims, mask_making, mask_sharing
from ssl_seg.results import pieces as pieces_module
from ssl_seg.results import workers as workers_module
from ssl_seg.results.mask_files import RECORD, Job, MaskRecord
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.pieces import PLAN, Pieces, divide
from ssl_seg.results.prediction import predict

SHAPE = (230, 150)
Tell = Callable[[object], None]


def refuse_locks(*_: object) -> None:
    """Stand in for ``flock`` on a network disk without locks."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def write_image(path: Path, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).integers(0, 200, SHAPE).astype(np.uint8)
    write_mask(path, np.kron(values[::10, ::10], np.ones((10, 10), np.uint8)))
    return path


@pytest.fixture
def request_(tiny_run: Path, tmp_path: Path) -> PredictRequest:
    image = write_image(tmp_path / "a.npy")
    return PredictRequest(
        tiny_run / "checkpoints" / "best.pt", image, tmp_path / "out.tif", "student", probabilities=True
    )


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Cut every image into pieces of 64 rows; return the first rows of those that networks are asked for."""
    monkeypatch.setattr(mask_making, "WHOLE_VOXELS", 0)
    monkeypatch.setattr(pieces_module, "PIECE_VOXELS", 64 * SHAPE[1])
    monkeypatch.setattr(pieces_module, "WAIT", 0.01)
    asked: list[int] = []
    stream = Predictor.stream

    def note(self: Predictor, image: Any, intensity: Any, box: Any) -> Any:
        asked.append(box[0].start)
        return stream(self, image, intensity, box)

    monkeypatch.setattr(Predictor, "stream", note)
    return asked


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("out*")}


def stop_after(number: int) -> Any:
    """Return what tracks the pieces, and is interrupted when so many are done."""

    def track(items: Any, total: int) -> Iterator[Any]:
        assert total == 4
        for count, item in enumerate(items, start=1):
            yield item
            if count == number:
                raise KeyboardInterrupt

    return track


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".ome.zarr", ".h5", ".nii", ".nii.gz", ".png"])
def test_they_give_what_the_whole_gives(
    request_: PredictRequest,
    tmp_path: Path,
    suffix: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = replace(request_, source=write_image(tmp_path / f"image{suffix}"), output=tmp_path / f"whole{suffix}")
    predict(whole)
    request.getfixturevalue("in_pieces")
    monkeypatch.setattr(nifti, "BOXES_FROM", 1)
    predict(replace(whole, output=tmp_path / f"out{suffix}"))
    other = ".tif" if suffix == ".png" else suffix
    probs, expected = (open_image(str(tmp_path / f"{name}_prob{other}")).read()[0] for name in ("out", "whole"))
    np.testing.assert_allclose(probs, expected, atol=1e-6)
    assert probs.dtype == np.float32
    np.testing.assert_array_equal(read_mask(str(tmp_path / f"out{suffix}")) > 0, probs > 0.5)
    assert hidden(tmp_path) == []


def test_a_compressed_volume_is_unpacked_where_no_folder_is_yet(
    request_: PredictRequest, in_pieces: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "BOXES_FROM", 1)
    (tmp_path / "images" / "sub").mkdir(parents=True)
    write_image(tmp_path / "images" / "sub" / "a.nii.gz")
    predict(replace(request_, source=tmp_path / "images", output=tmp_path / "masks"))
    assert sorted(path.name for path in (tmp_path / "masks" / "sub").iterdir()) == ["a.nii.gz", "a_prob.nii.gz"]


def test_channels_that_are_equal_are_one(
    request_: PredictRequest, in_pieces: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_module, "BOXES_FROM", 1)
    gray = open_image(str(request_.source)).read()[0]
    for name, colors in (("gray", [gray] * 3), ("color", [gray, gray, 255 - gray])):
        tifffile.imwrite(
            tmp_path / f"{name}.tif", np.stack(colors, axis=-1), photometric="rgb", compression="zlib", tile=(32, 32)
        )
    predict(request_)
    predict(replace(request_, source=tmp_path / "gray.tif", output=tmp_path / "gray_out.tif"))
    np.testing.assert_array_equal(read_mask(str(tmp_path / "gray_out.tif")), read_mask(str(tmp_path / "out.tif")))
    with pytest.raises(DataError, match="3 channels"):
        predict(replace(request_, source=tmp_path / "color.tif", output=tmp_path / "color_out.tif"))


@pytest.mark.parametrize("in_parts", [False, True])
def test_what_looks_like_no_data_is_left_out_as_what_a_file_declares(
    request_: PredictRequest,
    tmp_path: Path,
    in_parts: bool,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if in_parts:
        request.getfixturevalue("in_pieces")
    image = open_image(str(request_.source)).read()[0].astype(np.float32)
    gaps = np.zeros(SHAPE, bool)
    gaps[:, 40:90] = True
    np.save(tmp_path / "mark.npy", np.where(gaps, -9999, image))
    tag = (42113, "s", 0, "-9999", True)  # GDAL_NODATA
    tifffile.imwrite(tmp_path / "declared.tif", np.where(gaps, -9999, image).astype(np.float32), extratags=[tag])
    np.save(tmp_path / "few.npy", np.where(np.arange(image.size).reshape(SHAPE) < FEWEST - 1, -9999, image))
    said: dict[str, list[str]] = {}

    def run(source: str, **changes: Any) -> NDArray[Any]:
        call = replace(request_, source=tmp_path / source, output=tmp_path / f"out_{source}.npy", **changes)
        if in_parts and source == "mark.npy":
            with pytest.raises(KeyboardInterrupt):
                predict(call, stop_after(2))
        predict(call, note=said.setdefault(source, []).append)
        return np.load(tmp_path / f"out_{source}_prob.npy")

    found = run("mark.npy")
    np.testing.assert_array_equal(found, run("declared.tif"))
    assert not found[gaps].any()
    assert any("-9999 is taken for no data" in text for text in said["mark.npy"])
    assert run("few.npy").all()
    assert not any("no data" in text for text in said["few.npy"] + said["declared.tif"])
    stored = load_checkpoint(request_.checkpoint)
    kept = {**stored.config, "data": {**stored.config["data"], "nodata": "none"}}
    save_checkpoint(replace(stored, config=kept), tmp_path / "all.pt")
    call = replace(request_, checkpoint=tmp_path / "all.pt", source=tmp_path / "mark.npy", output=tmp_path / "all.npy")
    predict(call)
    assert np.load(tmp_path / "all_prob.npy").all()


class TestInterruption:
    @pytest.mark.parametrize("after", [1, 2, 4])
    def test_the_same_call_makes_the_rest_with_equal_bits(
        self, request_: PredictRequest, in_pieces: list[int], tmp_path: Path, after: int
    ) -> None:
        predict(replace(request_, output=tmp_path / "uninterrupted" / "out.tif"))
        del in_pieces[:]
        said: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            predict(request_, stop_after(after), note=said.append)
        assert said[-1].endswith(f"; so far {counted(after, 'piece', 'of larger images are')} done and kept")
        assert outputs(tmp_path) == {}
        del in_pieces[:]
        shown: list[tuple[int, int]] = []
        predict(request_, lambda items, total: shown.append((len(list(items)), total)) or ())
        assert shown == [(4 - after, 4 - after)]
        assert in_pieces == ([] if after == 4 else [64 * after])
        assert outputs(tmp_path) == outputs(tmp_path / "uninterrupted")
        assert hidden(tmp_path) == []

    def test_a_piece_in_the_middle_that_is_lost_is_made_anew(
        self, request_: PredictRequest, in_pieces: list[int], tmp_path: Path
    ) -> None:
        predict(replace(request_, output=tmp_path / "uninterrupted" / "out.tif"))
        with pytest.raises(KeyboardInterrupt):
            predict(request_, stop_after(4))
        (folder,) = hidden(tmp_path)
        for number in (0, 2):
            (folder / f"{number:05}.npy").unlink()
        del in_pieces[:]
        predict(request_)
        assert sorted(in_pieces) == [0, 128]
        assert outputs(tmp_path) == outputs(tmp_path / "uninterrupted")

    @pytest.mark.parametrize("change", [{"which": "teacher"}, {"overlap": 0.5}, {"probabilities": False}])
    def test_pieces_of_another_call_are_not_used(
        self, request_: PredictRequest, in_pieces: list[int], tmp_path: Path, change: dict[str, Any]
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            predict(request_, stop_after(2))
        del in_pieces[:]
        predict(replace(request_, **change))
        assert in_pieces == [0]
        assert len(hidden(tmp_path)) == 1  # those of the other call

    def test_pieces_of_an_image_that_has_changed_are_not_used(
        self, request_: PredictRequest, in_pieces: list[int], tmp_path: Path
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            predict(request_, stop_after(2))
        write_image(request_.source, 1)
        os.utime(request_.source, (1, 1))
        del in_pieces[:]
        predict(request_)
        assert in_pieces == [0]

    def test_a_full_disk_is_said_and_the_pieces_stay(
        self, request_: PredictRequest, in_pieces: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save = Pieces._save

        def fail(self: Pieces, number: int, found: Any) -> None:
            if number == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            save(self, number, found)

        with monkeypatch.context() as patch:
            patch.setattr(Pieces, "_save", fail)
            with pytest.raises(DataError, match=r"the disk of .*out\.tif is full.*; 0 masks are done"):
                predict(request_)
        del in_pieces[:]
        predict(request_)
        assert in_pieces == [128]


class TestSeveralProcesses:
    def test_they_share_the_pieces(self, request_: PredictRequest, in_pieces: list[int], tmp_path: Path) -> None:
        predict(replace(request_, output=tmp_path / "alone" / "out.tif"))
        del in_pieces[:]
        failed: list[BaseException] = []

        def run() -> None:
            try:
                predict(request_)
            except BaseException as error:  # noqa: BLE001 (shown by the assertion)
                failed.append(error)

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert outputs(tmp_path) == outputs(tmp_path / "alone")
        assert hidden(tmp_path) == []

    def test_without_locks_another_may_finish_and_remove_them_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fcntl, "flock", refuse_locks)
        pieces = self.make(tmp_path / "p", 1)

        def overtaken() -> None:
            assert pieces.finish(lambda: None)  # the other one
            pieces.open("")

        assert not pieces.finish(overtaken)
        with pytest.raises(FileNotFoundError):
            self.make(tmp_path / "p", 1).finish(lambda: pieces.open(""))

    def make(self, folder: Path, number: int) -> Pieces:
        folder.mkdir(exist_ok=True)
        (folder / PLAN).write_text("{}")
        return Pieces(folder, (10 * number, 4), tuple((slice(10 * n, 10 * n + 10), slice(0, 4)) for n in range(number)))

    def test_the_second_begins_in_the_middle_of_what_is_left(self, tmp_path: Path) -> None:
        pieces = self.make(tmp_path / "p", 9)
        claims = []
        for expected in (0, 5, 3):
            claim = pieces._claim(list(range(9)))
            assert claim is not None
            assert claim[0] == expected
            claims.append(claim)
        claims[0][1].release()
        again = pieces._claim([0, 5])
        assert again is not None
        assert again[0] == 0
        assert pieces._claim([0, 5]) is None

    def test_one_waits_for_the_piece_that_another_makes_and_makes_it_where_that_dies(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pieces = self.make(tmp_path / "p", 3)
        other = pieces._lock(1)
        assert other is not None
        waits = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:
                other.release()

        monkeypatch.setattr(pieces_module.time, "sleep", wait)

        def ones(box: Any) -> Any:
            for row in range(box[0].start, box[0].stop, 7):
                count = min(7, box[0].stop - row)
                yield row, {"": np.full((count, 4), row // 7, np.uint8), "_prob": np.full((count, 4), row, np.float32)}

        assert sorted(pieces.make(ones)) == [0, 1, 2]
        assert len(waits) == 2
        assert pieces.open("_prob").shape == (30, 4)
        assert pieces.open("")[:].dtype == np.uint8

    def test_what_another_has_finished_is_left_alone(
        self, request_: PredictRequest, in_pieces: list[int], tmp_path: Path
    ) -> None:
        def finish(items: Any, total: int) -> Iterator[Any]:
            predict(request_)  # another process, which overtakes this one
            before.update(outputs(tmp_path))
            yield from items

        before: dict[str, bytes] = {}
        predict(request_, finish)
        assert before
        assert outputs(tmp_path) == before
        assert hidden(tmp_path) == []


def make_in_small_pieces(tell: Tell, *arguments: Any) -> None:
    """In another process: the constants of the fixture ``in_pieces``."""
    mask_making.WHOLE_VOXELS = 0
    pieces_module.PIECE_VOXELS = 64 * SHAPE[1]
    mask_sharing._make_elsewhere(tell, *arguments)


def make_one_and_die(tell: Tell, *arguments: Any) -> None:
    def tell_one(message: object) -> None:
        if isinstance(message, mask_sharing.Step) and message.number >= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        tell(message)

    make_in_small_pieces(tell_one, *arguments)


class TestWorkers:
    @pytest.fixture(autouse=True)
    def _forked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Loading torch takes longer than all masks; ``test_workers`` starts processes as the package does."""
        monkeypatch.setattr(workers_module, "get_context", lambda _: SERVER)

    def test_killed_in_the_middle_and_given_again(
        self,
        request_: PredictRequest,
        in_pieces: list[int],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        predict(replace(request_, output=tmp_path / "alone" / "out.tif"))
        monkeypatch.setattr(mask_sharing, "_make_elsewhere", make_one_and_die)
        with pytest.raises(MachineError, match="killed by signal 9"):
            predict(replace(request_, workers=2))
        assert outputs(tmp_path) == {}
        (folder,) = hidden(tmp_path)
        done = {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9]*[0-9].npy")}
        assert 1 <= len(done) <= 2
        monkeypatch.setattr(mask_sharing, "_make_elsewhere", make_in_small_pieces)
        shown: list[tuple[int, int]] = []
        del in_pieces[:]
        predict(replace(request_, workers=2), lambda items, total: shown.append((len(list(items)), total)) or ())
        assert in_pieces == []  # this process makes none
        assert shown == [(4 - len(done), 4 - len(done))]
        assert outputs(tmp_path) == outputs(tmp_path / "alone")
        assert hidden(tmp_path) == []

    def test_a_folder(self, request_: PredictRequest, tmp_path: Path) -> None:
        for number in range(5):
            (tmp_path / "images").mkdir(exist_ok=True)
            write_mask(tmp_path / "images" / f"{number}.png", np.random.default_rng(number).integers(0, 200, (40, 40)))
        (tmp_path / "images" / "3.png").write_bytes(b"")
        one, two = (
            replace(request_, source=tmp_path / "images", output=tmp_path / name, workers=workers)
            for name, workers in (("one", 1), ("two", 2))
        )
        for request in (one, two):
            with pytest.raises(
                DataError, match=r"(?s)1 of 5 images have no mask, 4 other masks .*3\.png: the file is empty"
            ):
                predict(request)
        names = {path.name for path in one.output.iterdir()}
        assert names == {path.name for path in two.output.iterdir()}
        for name in names - {RECORD}:
            assert (one.output / name).read_bytes() == (two.output / name).read_bytes()
        (tmp_path / "images" / "3.png").unlink()
        notes: list[str] = []
        assert predict(two, note=notes.append) == []
        assert any("4 of 4 masks are there already" in text for text in notes)

    def test_numbers_that_are_none(self, cli: Cli, request_: PredictRequest, tiny_run: Path, tmp_path: Path) -> None:
        for workers in (0, -1):
            with pytest.raises(ConfigError, match=f"--workers {workers}"):
                predict(replace(request_, workers=workers))
        for text in ("0", "-1", "2.5", "all"):
            assert_refused(
                cli("predict", tiny_run, request_.source, tmp_path / "out.tif", "--workers", text), "--workers"
            )
        assert outputs(tmp_path) == {}

    @pytest.mark.parametrize("asked", around(4))
    def test_no_more_than_there_are_pieces(self, request_: PredictRequest, in_pieces: list[int], asked: int) -> None:
        work = mask_sharing.Work(
            replace(request_, workers=asked), [Job((str(request_.source),), request_.output)], [], MaskRecord(None, {})
        )
        maker = mask_making.open_maker(request_, mask_making.open_networks(request_, print), print)
        assert mask_sharing.count_workers(work, maker) == min(asked, 4)

    def test_a_small_image_needs_no_other_process(
        self,
        request_: PredictRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delattr(mask_sharing, "run_workers")
        notes: list[str] = []
        assert predict(replace(request_, workers=2), note=notes.append) == [tmp_path / "out.tif"]
        assert any("so few images or pieces are left to share that 1 process works" in text for text in notes)

    def test_a_checkpoint_that_changes_meanwhile(self, request_: PredictRequest, tmp_path: Path) -> None:
        record = MaskRecord(tmp_path, {})
        work = mask_sharing.Work(request_, [], [], record)
        with pytest.raises(DataError, match="has changed since the command started"):
            mask_sharing._make_elsewhere(lambda _: None, work, {"networks": []}, 1)


def test_several_calls_share_a_folder_of_small_images(
    request_: PredictRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    describe = mask_sharing.make_mask

    def note(job: Any, *arguments: Any) -> Any:
        made.append(job.mask.name)
        return describe(job, *arguments)

    monkeypatch.setattr(mask_sharing, "make_mask", note)
    monkeypatch.setattr(claims, "WAIT", 0.01)
    (tmp_path / "images").mkdir()
    for number in range(6):
        write_image(tmp_path / "images" / f"{number}.png", number)
    request = replace(request_, source=tmp_path / "images", output=tmp_path / "out")
    failed: list[BaseException] = []

    def run() -> None:
        try:
            predict(request)
        except BaseException as error:  # noqa: BLE001 (shown by the assertion)
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(made) == [f"{number}.png" for number in range(6)]
    del made[:]
    assert predict(request) == made == []


@pytest.mark.parametrize("voxels", around(4 * 90 * 30))
@pytest.mark.parametrize("patch", [(4, 8, 8), (9, 8, 8)])
def test_every_voxel_is_in_one_piece(voxels: int, patch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "PIECE_VOXELS", voxels)
    covered = np.zeros((50, 90, 30), int)
    for box in divide(covered.shape, patch):
        covered[box] += 1
        assert box[0].stop - box[0].start <= max(patch[0], voxels // (90 * 30))
    assert (covered == 1).all()


@pytest.mark.parametrize("voxels", around(SHAPE[0] * SHAPE[1]))
def test_only_large_images(
    request_: PredictRequest, in_pieces: list[int], voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_making, "WHOLE_VOXELS", voxels)
    predict(request_)
    assert bool(in_pieces) == (SHAPE[0] * SHAPE[1] > voxels)


def test_no_space_for_hdf5_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros((10, 10), np.float32)
    for free in around(400):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with nullcontext() if free >= 400 else pytest.raises(DataError, match="No space left") as caught:
            write_probabilities(tmp_path / "a.h5", array)
        assert caught is None or is_disk_full(caught.value)


@pytest.mark.parametrize("suffix", [".tif", ".nii", ".nii.gz", ".npy", ".ome.zarr"])
@pytest.mark.parametrize("by_rows", [True, False])
def test_no_space_is_an_error_and_leaves_nothing(suffix: str, by_rows: bool, tmp_path: Path) -> None:
    """A file that is mapped into memory would end the process."""
    array = np.random.default_rng(0).random((90, 100, 100)).astype(np.float32)
    reader = LazyArray(array.shape, array.dtype, lambda rows: array[rows])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match="cannot be written") as caught:
            write_probabilities(tmp_path / f"a{suffix}", reader if by_rows else array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_disk_full(caught.value)
    assert list(tmp_path.iterdir()) == []
