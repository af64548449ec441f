"""``ssl-seg predict``: which images get a mask, what is kept, and what is never written over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from PIL import Image, ImageOps
from test_cli import assert_refused

from ssl_seg.data.volumes import read_mask, write_mask
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.files import read_jsonl
from ssl_seg.inference.sliding import Predictor
from ssl_seg.networks.checkpoint import load_checkpoint, save_checkpoint
from ssl_seg.results import mask_making
from ssl_seg.results.mask_files import RECORD, Job, Made, MaskRecord, check_places, note_unread, plan_jobs
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.prediction import SHOWN_FAILURES, predict

IMAGES = 5


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Take each pixel above 100 for foreground; return the shapes of the images that were predicted."""
    seen: list[tuple[int, ...]] = []

    def classify(self: Predictor, image: np.ndarray[Any, Any], spacing: object = None) -> np.ndarray[Any, Any]:
        seen.append(image.shape)
        high = (image[0] > 100).astype(np.float32)
        return np.stack([1 - high, high])

    monkeypatch.setattr(Predictor, "__call__", classify)
    return seen


def make_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, np.random.default_rng(seed).integers(0, 200, (40, 40)))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(IMAGES):
        make_image(tmp_path / "images" / f"{number}.png", number)
    return tmp_path / "images"


@pytest.fixture
def request_(tiny_run: Path, images: Path, tmp_path: Path) -> PredictRequest:
    return PredictRequest(tiny_run / "checkpoints" / "best.pt", images, tmp_path / "out", "student", overlap=0.5)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.is_file()}


def test_the_mask_of_a_turned_photo_lies_on_the_upright_image(tiny_run: Path, tmp_path: Path) -> None:
    photo, exif = Image.fromarray(np.random.default_rng(0).integers(0, 200, (40, 56), dtype=np.uint8)), Image.Exif()
    exif[274] = 6
    photo.save(tmp_path / "a.png", exif=exif)
    said: list[str] = []
    request = PredictRequest(tiny_run / "checkpoints" / "best.pt", tmp_path / "a.png", tmp_path / "out.png", "student")
    predict(request, note=said.append)
    photo.getexif()[274] = 6
    upright = np.asarray(ImageOps.exif_transpose(photo))
    np.testing.assert_array_equal(read_mask(str(tmp_path / "out.png")) > 0, upright > 100)
    assert "1 image: it is turned upright, as its orientation tag says" in said


@pytest.mark.parametrize("value", [0, 7])
def test_images_of_one_value_are_told(request_: PredictRequest, images: Path, value: int) -> None:
    said: list[str] = []
    predict(request_, note=said.append)
    assert "same value" not in " ".join(said)
    for number in (1, 3):
        write_mask(images / f"{number}.png", np.full((40, 40), value))
    predict(replace(request_, overwrite=True), note=said.append)
    assert "2 images: all voxels have the same value, so the mask says nothing" in said


class TestBrokenImages:
    def test_the_others_are_written_and_the_broken_ones_named(
        self, cli: Cli, tiny_run: Path, images: Path, tmp_path: Path
    ) -> None:
        (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
        (images / "3.png").write_bytes(b"")
        result = cli("predict", tiny_run, images, tmp_path / "out")
        assert_refused(
            result, "2 of 5 images have no mask", "3 other masks are", f"{images}/1.png: ", f"{images}/3.png: "
        )
        assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["0.png", "2.png", "4.png"]
        make_image(images / "1.png", 1)
        (images / "3.png").unlink()
        code, out, err = cli("predict", tiny_run, images, tmp_path / "out")
        assert (code, "wrote 1 mask" in out, "3 of 4 masks are there already" in err) == (0, True, True)

    def test_one_image_alone_is_the_error(self, cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"")
        assert_refused(
            cli("predict", tiny_run, tmp_path / "a.png", tmp_path / "out"), "error: ", "a.png: the file is empty"
        )
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "error", [DataError("not finite"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]
    )
    def test_what_the_network_cannot_take_is_a_broken_image(
        self, request_: PredictRequest, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        whole = Predictor.__call__

        def fail(self: Predictor, image: np.ndarray[Any, Any], spacing: object = None) -> object:
            if image[0, 0, 0] == np.random.default_rng(2).integers(0, 200, (40, 40))[0, 0]:
                raise error
            return whole(self, image, spacing)

        monkeypatch.setattr(Predictor, "__call__", fail)
        with pytest.raises(
            DataError, match=r"1 of 5 images have no mask, 4 other masks(?s:.*)2\.png: (not finite|out of)"
        ):
            predict(request_)

    def test_an_error_of_the_program_is_no_broken_image(
        self, request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("shapes differ")

        monkeypatch.setattr(Predictor, "__call__", fail)
        with pytest.raises(RuntimeError, match="shapes differ"):
            predict(request_)

    def test_a_full_disk_ends_it(self, request_: PredictRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        written = []

        def fail(path: Path, *_: object) -> None:
            written.append(path)
            raise DataError(f"{path}: cannot be written") from OSError(28, "No space left on device")

        monkeypatch.setattr(mask_making, "write_mask", fail)
        with pytest.raises(DataError, match=r"the disk of .* is full.*; 0 masks are done"):
            predict(request_)
        assert len(written) == 1

    @pytest.mark.parametrize("broken", [SHOWN_FAILURES - 1, SHOWN_FAILURES, SHOWN_FAILURES + 1, 3 * SHOWN_FAILURES])
    def test_all_are_named(self, request_: PredictRequest, tmp_path: Path, broken: int) -> None:
        for number in range(broken):
            make_image(tmp_path / "many" / f"{number:03}.png").write_bytes(b"")
        with pytest.raises(DataError) as caught:
            predict(replace(request_, source=tmp_path / "many"))
        text = str(caught.value)
        assert all(text.count(f"{number:03}.png") == 1 for number in range(broken))
        assert text.count("the file is empty") == min(broken, SHOWN_FAILURES)
        assert not (tmp_path / "out").exists()


class TestContinuing:
    def interrupt(self, request: PredictRequest, after: int) -> list[str]:
        def track(items: Any, total: int) -> Any:
            for number, item in enumerate(items):
                if number == after:
                    raise KeyboardInterrupt
                yield item

        said: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            predict(request, track, note=said.append)
        return said

    @pytest.mark.parametrize("after", [0, 1, IMAGES - 1])
    def test_the_same_call_goes_on(
        self, request_: PredictRequest, quick: list[Any], tmp_path: Path, after: int
    ) -> None:
        said = self.interrupt(request_, after)
        assert said[-1].startswith(f"interrupted: {after} of {IMAGES} masks")
        before = contents(tmp_path / "out") if after else {}
        del quick[:]
        notes: list[str] = []
        masks = predict(request_, note=notes.append)
        assert [mask.name for mask in masks] == [f"{n}.png" for n in range(after, IMAGES)]
        assert len(quick) == IMAGES - after
        kept = [text for text in notes if "are there already" in text]
        assert [f"{after} of {IMAGES}" in text for text in kept] == [True] * bool(after)
        assert all(contents(tmp_path / "out")[name] == own for name, own in before.items() if name != RECORD)
        del quick[:]
        assert predict(request_) == quick == []
        for mask in (tmp_path / "out").glob("*.png"):
            expected = np.random.default_rng(int(mask.stem)).integers(0, 200, (40, 40)) > 100
            np.testing.assert_array_equal(read_mask(str(mask)) > 0, expected)

    def test_a_mask_written_but_not_recorded_is_made_anew(self, request_: PredictRequest, tmp_path: Path) -> None:
        """The process was killed between the two."""
        predict(request_)
        record = tmp_path / "out" / RECORD
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(lines[:-1]) + lines[-1][:9])
        notes: list[str] = []
        predict(request_, note=notes.append)
        assert any(f"{IMAGES - 1} of {IMAGES}" in text for text in notes)

    def test_ctrl_c_names_the_command(
        self, cli: Cli, tiny_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def interrupt(*given: Any) -> None:
            calls.append(given)
            if len(calls) == 3:
                raise KeyboardInterrupt
            write_mask(*given)

        monkeypatch.setattr(mask_making, "write_mask", interrupt)
        code, out, err = cli("predict", tiny_run, images, tmp_path / "my out", "--overwrite")
        assert (code, out) == (130, "")
        assert "2 of 5 masks" in err
        assert err.splitlines()[-1] == f"continue with: ssl-seg predict {tiny_run} {images} '{tmp_path / 'my out'}'"
        assert sorted(p.name for p in (tmp_path / "my out").iterdir()) == [RECORD, "0.png", "1.png"]
        assert cli("predict", tiny_run, images, tmp_path / "my out")[0] == 0

    def test_probabilities_that_are_missing_are_made(self, request_: PredictRequest, quick: list[Any]) -> None:
        masks = predict(request_)
        del quick[:]
        predict(replace(request_, probabilities=True))
        assert len(quick) == IMAGES
        assert all(mask.with_name(f"{mask.stem}_prob.tif").is_file() for mask in masks)
        masks[0].with_name("0_prob.tif").unlink()
        del quick[:]
        predict(replace(request_, probabilities=True))
        assert len(quick) == 1

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"which": "teacher"}, "other networks"),
            ({"overlap": 0.25}, "overlap 0.5 and not 0.25"),
            ({"threshold": 0.3}, "threshold as by default and not 0.3"),
            ({"spacing": (1.0, 2.0)}, r"spacing as by default and not \[1.0, 2.0\]"),
        ],
    )
    def test_masks_made_otherwise_are_not_kept(
        self, request_: PredictRequest, quick: list[Any], tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        predict(request_)
        before = contents(tmp_path / "out")
        other = replace(request_, **change)
        with pytest.raises(DataError, match=f"{words}.*4 more.*--overwrite"):
            predict(other)
        assert contents(tmp_path / "out") == before
        del quick[:]
        predict(replace(other, overwrite=True))
        assert len(quick) == IMAGES
        predict(other)
        with pytest.raises(DataError, match="--overwrite"):
            predict(request_)

    def test_another_checkpoint_of_the_same_name_is_noticed(
        self, request_: PredictRequest, tiny_run: Path, tmp_path: Path
    ) -> None:
        moved = Path(shutil.copy(tiny_run / "checkpoints" / "best.pt", tmp_path / "a.pt"))
        predict(request_)
        predict(replace(request_, checkpoint=moved))  # the same network at another place
        stored = load_checkpoint(moved)
        student = {name: value + 1 for name, value in stored.student.items()}
        save_checkpoint(replace(stored, student=student), moved)
        with pytest.raises(DataError, match="other networks"):
            predict(replace(request_, checkpoint=moved))

    def test_an_overwriting_call_that_was_interrupted_is_continued(
        self, request_: PredictRequest, quick: list[Any]
    ) -> None:
        predict(request_)
        other = replace(request_, which="teacher")
        self.interrupt(replace(other, overwrite=True), 2)
        del quick[:]
        predict(other)
        assert len(quick) == IMAGES - 2
        with pytest.raises(DataError, match="other networks"):
            predict(request_)

    def test_an_image_that_has_changed_is_noticed(self, request_: PredictRequest, images: Path) -> None:
        predict(request_)
        (images / "2.png").unlink()
        make_image(images / "2.png", 77)
        with pytest.raises(DataError, match=r"2\.png.*(another image|has changed).*--overwrite"):
            predict(request_)

    def test_an_image_that_changes_while_its_mask_is_made_is_noticed(
        self, request_: PredictRequest, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = mask_making._write_outputs

        def change_and_write(job: Job, *rest: Any) -> Any:
            if job.mask.name == "2.png":
                make_image(images / "2.png", 77)
            return write(job, *rest)

        monkeypatch.setattr(mask_making, "_write_outputs", change_and_write)
        predict(request_)
        with pytest.raises(DataError, match=r"2\.png.*has changed.*--overwrite"):
            predict(request_)

    def test_images_of_another_folder_are_no_continuation(self, request_: PredictRequest, tmp_path: Path) -> None:
        predict(request_)
        make_image(tmp_path / "elsewhere" / "0.png", 9)
        with pytest.raises(DataError, match="another image"):
            predict(replace(request_, source=tmp_path / "elsewhere"))
        make_image(tmp_path / "more" / "new.png", 9)
        assert predict(replace(request_, source=tmp_path / "more")) == [tmp_path / "out" / "new.png"]
        predict(request_)

    def test_the_warning_of_equal_masks_counts_those_that_are_kept(
        self, request_: PredictRequest, tmp_path: Path
    ) -> None:
        for number in range(12):
            make_image(tmp_path / "same" / f"{number:02}.png", 3)
        same = replace(request_, source=tmp_path / "same")
        self.interrupt(same, 11)
        notes: list[str] = []
        predict(same, note=notes.append)
        assert any("all 12 masks" in text for text in notes)

    def test_a_damaged_record_is_an_error(self, request_: PredictRequest, tmp_path: Path) -> None:
        predict(request_)
        (tmp_path / "out" / RECORD).write_text('{"done": "0.png", "key": "x"}\n')
        with pytest.raises(DataError, match="--overwrite"):
            predict(request_)
        predict(replace(request_, overwrite=True))

    def test_the_record_reads_what_it_wrote(self, tmp_path: Path) -> None:
        jobs = plan_jobs(make_image(tmp_path / "a.png"), tmp_path / "out", 2, "")
        record = MaskRecord(tmp_path / "out", {"overlap": 0.5})
        record.plan(jobs)
        assert record.read() == {"a.png": Made({"overlap": 0.5})}
        record.finish(jobs[0], jobs[0].identify_image(), (40, 40), 0.25)
        found = record.read()["a.png"]
        assert (found.shape, found.share, found.image) == ((40, 40), 0.25, jobs[0].identify_image())
        assert len(read_jsonl(tmp_path / "out" / RECORD)) == 2


class TestPlaces:
    def test_what_lies_below_the_output_counts_as_written_earlier(self, tmp_path: Path) -> None:
        image = make_image(tmp_path / "in" / "a.png")
        for output in (tmp_path, tmp_path / "in" / ".."):
            with pytest.raises(DataError, match="holds the images of"):
                check_places(image.parent, output)
        for source, output in ((image, tmp_path), (image.parent, tmp_path / "in" / "out")):
            check_places(source, output)

    def test_the_folder_of_the_images_is_no_output(
        self, request_: PredictRequest, images: Path, tmp_path: Path
    ) -> None:
        before = contents(images)
        for output in (images, images / ".." / "images", tmp_path):
            for overwrite in (False, True):
                with pytest.raises(DataError, match="among the images"):
                    predict(replace(request_, source=images, output=output, overwrite=overwrite)
                            if output != tmp_path else
                            replace(request_, source=tmp_path, output=images, overwrite=overwrite))  # fmt: skip
        assert contents(images) == before

    def test_an_image_is_never_written_over(self, request_: PredictRequest, images: Path, tmp_path: Path) -> None:
        before = contents(images)
        link = tmp_path / "link"
        link.symlink_to(images)
        for output in (images, images / "0.png", link, link / "0.png"):
            with pytest.raises(DataError, match="written"):
                predict(replace(request_, source=images / "0.png", output=output, overwrite=True))
        assert contents(images) == before

    def test_masks_below_the_images_are_no_images(
        self, request_: PredictRequest, quick: list[Any], images: Path
    ) -> None:
        inside = replace(request_, output=images / "masks_out")
        assert len(predict(inside)) == len(predict(replace(inside, overwrite=True))) == IMAGES
        assert len(quick) == 2 * IMAGES

    def test_two_images_of_one_name_are_refused(self, request_: PredictRequest, images: Path, tmp_path: Path) -> None:
        make_image(images / "0.tif")
        with pytest.raises(DataError, match=r"both be written to .*0\.png: .*0\.(png|tif) and .*0\.(png|tif)"):
            predict(request_)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("shape", "ndim", "layout", "axes", "jobs"),
        [
            ((6, 7), 3, "folders", None, 1),
            ((6, 7), 2, "folders", None, 3),
            ((9, 6, 7), 3, "folders", None, 3),
            ((9, 6, 7), 3, "slices", None, 3),
            ((3, 6, 7), 3, "folders", None, 1),  # channels of planes
            ((3, 6, 7), 3, "folders", "ZYX", 3),
        ],
    )
    def test_numbered_images_are_one_volume_for_a_network_of_volumes(
        self, tmp_path: Path, shape: tuple[int, ...], ndim: int, layout: str, axes: str | None, jobs: int
    ) -> None:
        (tmp_path / "scan").mkdir()
        for z in range(3):
            np.save(tmp_path / "scan" / f"{z:02}.npy", np.zeros(shape, np.uint8))
        for _ in range(2):  # what an earlier call has written changes nothing
            found = plan_jobs(tmp_path / "scan", tmp_path / "scan" / "out", ndim, layout, suffix=".npy", axes=axes)
            assert len(found) == jobs
            found[0].mask.parent.mkdir(exist_ok=True)
            np.save(found[0].mask, np.zeros(shape, np.uint8))

    def test_an_image_whose_name_has_two_colons_is_known_by_its_file(self, tmp_path: Path) -> None:
        path = make_image(tmp_path / "in" / "a::b.png")
        (job,) = plan_jobs(tmp_path / "in", tmp_path / "out", 2, "")
        assert job.identify_image()[0][:2] == [str(path.resolve()), path.stat().st_size]
        assert note_unread(tmp_path / "in", tmp_path / "out", [job]) == ()

    def test_probabilities_and_masks_of_one_name_are_refused(self, tmp_path: Path) -> None:
        for name in ("a.tif", "a_prob.tif"):
            make_image(tmp_path / "in" / name)
        with pytest.raises(DataError, match="both be written"):
            plan_jobs(tmp_path / "in", tmp_path / "out", 3, "", ("_prob",))
        plan_jobs(tmp_path / "in", tmp_path / "out", 3, "", ())

    def test_files_that_get_no_mask_are_told(self, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        for name in ("a.png", "out/a.png"):
            make_image(folder / name)
        for name in ("b.gif", "sub/c.nd2", "out/objects.csv"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        (note,) = note_unread(folder, folder / "out", plan_jobs(folder, folder / "out", 2, ""))
        assert "2 files cannot be read as images and are not used (1 x .gif, 1 x .nd2; b.gif, sub/c.nd2)" in note
        assert note_unread(folder / "a.png", folder / "out", ()) == ()
        (folder / "images").mkdir()
        assert note_unread(folder, folder / "out", ()) == ()  # the images are there

    def test_images_that_are_no_cases_of_a_data_set_are_told(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png", "sub/c.png"):
            make_image(tmp_path / name)
        (tmp_path / "sizes.csv").write_text("image,cells\nsub/../a.png,3\n")
        jobs = plan_jobs(tmp_path, tmp_path / "out", 2, "")
        assert [job.mask.name for job in jobs] == ["a.png"]
        *_, note = note_unread(tmp_path, tmp_path / "out", jobs)
        assert "is read as a data set: 2 image files outside its cases get no mask (b.png, sub/c.png)" in note

    def test_volumes_are_no_png(self, tmp_path: Path) -> None:
        make_image(tmp_path / "in" / "a.tif")
        for output, suffix in ((tmp_path / "out", ".png"), (tmp_path / "out.png", None)):
            source = tmp_path / "in" if suffix else tmp_path / "in" / "a.tif"
            with pytest.raises(DataError, match="PNG holds no volume"):
                plan_jobs(source, output, 3, "", suffix=suffix)
            assert plan_jobs(source, output, 2, "", suffix=suffix)[0].mask.suffix == ".png"

    def test_the_name_of_a_mask_says_no_other_format(self, tmp_path: Path) -> None:
        source = make_image(tmp_path / "a.tif")
        with pytest.raises(DataError, match=r"--format jpg: masks are written as \.png, "):
            plan_jobs(source, tmp_path / "out", 2, "", suffix=".jpg")
        for name, suffix in (("out.tif", ".png"), ("out.nii", ".nii.gz"), ("out.ome.zarr", ".h5")):
            with pytest.raises(DataError, match=rf"--format {suffix[1:]}: .*{name} says another format"):
                plan_jobs(source, tmp_path / name, 2, "", suffix=suffix)
        for name, suffix in (("out.tiff", ".tif"), ("out.nii.gz", ".nii.gz"), ("out.zarr", ".ome.zarr")):
            assert plan_jobs(source, tmp_path / name, 2, "", suffix=suffix)[0].mask == tmp_path / name

    def test_formats_that_are_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"not written as \.jpg"):
            check_places(make_image(tmp_path / "a.tif"), tmp_path / "out.jpg")

    @pytest.mark.parametrize("suffix", [".tif", ".npy", ".nii.gz", ".h5", ".ome.zarr"])
    def test_every_format_is_recorded_and_kept(
        self, request_: PredictRequest, quick: list[Any], tmp_path: Path, suffix: str
    ) -> None:
        request = replace(request_, suffix=suffix, probabilities=True)
        masks = predict(request)
        assert [mask.name for mask in masks] == [f"{n}{suffix}" for n in range(IMAGES)]
        expected = np.random.default_rng(0).integers(0, 200, (40, 40)) > 100
        np.testing.assert_array_equal(read_mask(str(masks[0])) > 0, expected)
        del quick[:]
        assert predict(request) == quick == []
        assert len(predict(replace(request, overwrite=True))) == IMAGES

    def test_a_manifest_of_several_is_named_by_its_file(self, tmp_path: Path) -> None:
        for name in "ab":
            write_mask(tmp_path / f"{name}.png", np.zeros((4, 5), np.uint8))
            (tmp_path / f"{name}.csv").write_text(f"image,mask\n{name}.png,\n")
        check_places(tmp_path / "b.csv", tmp_path / "out")
        jobs = plan_jobs(tmp_path / "b.csv", tmp_path / "out", 2, "manifest")
        assert [(job.locations, job.mask) for job in jobs] == [((str(tmp_path / "b.png"),), tmp_path / "out" / "b.png")]
        with pytest.raises(DataError, match="need a folder"):
            check_places(tmp_path / "b.csv", tmp_path / "out.png")

    def test_names_of_nnunet_that_clash_are_refused(self, tmp_path: Path) -> None:
        for name in ("a_0000.nii", "a_0000.nii.gz"):
            (tmp_path / name).touch()
        with pytest.raises(DataError, match="both be the same channel"):
            plan_jobs(tmp_path, tmp_path / "out", 3, "nnunet")

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda t: (t / "none", t / "out"), "no image file or folder"),
            (lambda t: (t / "images" / "note.txt", t / "out"), "is not an image"),
            (lambda t: (t / "empty", t / "out"), "holds no image"),
            (lambda t: (t / "images", t / "file"), "is a file"),
            (lambda t: (t / "images", t / "out.png"), "need a folder"),
            (lambda t: (t / "images" / "0.png", t / "file"), "is a file, but no"),
            (lambda t: (t / "images" / "0.png", t / "file" / "below"), "file is a file"),
            (lambda t: (t / "images", t / "there"), "exists already and is not overwritten"),
        ],
    )  # fmt: skip
    def test_places_that_cannot_be(
        self, request_: PredictRequest, tmp_path: Path, make: Callable[[Path], tuple[Path, Path]], words: str
    ) -> None:
        (tmp_path / "images" / "note.txt").write_text("x")
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("mine")
        make_image(tmp_path / "there" / "4.png", 5)
        before = contents(tmp_path)
        source, output = make(tmp_path)
        with pytest.raises(DataError, match=words):
            predict(replace(request_, source=source, output=output))
        assert contents(tmp_path) == before

    def test_permissions(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for refused in (images, tmp_path):
            monkeypatch.setattr("os.access", lambda path, _, refused=refused: Path(path) != refused)
            with pytest.raises(DataError, match=f"{refused}.*permission denied|permission denied.*{refused}"):
                check_places(images, tmp_path / "out")

    def test_a_mask_in_the_place_of_a_folder(self, request_: PredictRequest, tmp_path: Path) -> None:
        (tmp_path / "out" / "0.png").mkdir(parents=True)
        with pytest.raises(DataError, match=r"0\.png is a folder"):
            predict(replace(request_, overwrite=True))


class TestOptions:
    @pytest.mark.parametrize(
        "text",
        ["nan", "inf", "-1,1", "0,1", "1", "1,1,1,1", "a", " ", "1;1", "1,", "1e400,1", "\N{ARABIC-INDIC DIGIT ONE},1"],
    )
    def test_spacing_that_is_none(self, cli: Cli, tiny_run: Path, images: Path, tmp_path: Path, text: str) -> None:
        result = cli("predict", tiny_run, images, tmp_path / "out", "--spacing", text)
        assert_refused(result, "--spacing", "2.5,1,1")
        assert result[2].count("error: ") == 1

    def test_spacing_of_other_axes(self, cli: Cli, tiny_run: Path, images: Path, tmp_path: Path) -> None:
        result = cli("predict", tiny_run, images, tmp_path / "out", "--spacing", "1,1,1")
        assert_refused(result, "--spacing 1,1,1", "2D images", "y,x")
        code, _, err = cli("predict", tiny_run, images, tmp_path / "out", "--spacing", "1,1")
        assert code == 0
        assert "WARNING --spacing changes nothing" in err

    @pytest.mark.parametrize("spacing", [(1.0,), (float("nan"), 1.0), (0.0, 1.0), (1.0, -1.0)])
    def test_spacing_of_code(self, request_: PredictRequest, spacing: tuple[float, ...]) -> None:
        with pytest.raises(ConfigError, match="spacing"):
            predict(replace(request_, spacing=spacing))

    def test_the_record_is_plain_json(self, request_: PredictRequest, tmp_path: Path) -> None:
        predict(replace(request_, threshold=0.5, spacing=(1.0, 2.0)))
        lines = [json.loads(line) for line in (tmp_path / "out" / RECORD).read_text().splitlines()]
        assert lines[0]["planned"] == [f"{n}.png" for n in range(IMAGES)]
        assert {line["key"] for line in lines} == {lines[0]["key"]}
