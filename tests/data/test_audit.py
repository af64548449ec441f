"""Each rule finds what was planted, stays quiet beside its limit, and the whole works on real folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ssl_seg.data.audit import checks
from ssl_seg.data.audit.doctor import Audit, audit
from ssl_seg.data.audit.summary import measure_spread, summarize
from ssl_seg.data.catalog import CatalogSettings, open_catalog
from ssl_seg.data.facts import Appearance, CaseFacts
from ssl_seg.data.findings import Finding
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.data.synthetic import generate, write_dataset
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.labels import Meaning


def fact(foreground: float | None = 0.3, shape: tuple[int, ...] = (64, 64), **changes: Any) -> CaseFacts:
    values = None if foreground is None else (0, 1)
    defaults = {"channels": 1, "dtype": "uint8", "values": values, "content": "0" * 16, "appearance": look()}
    defaults |= {"annotated": None if foreground is None else 1.0}
    return CaseFacts(shape=shape, foreground=foreground, **(defaults | changes))


def look(low: float = 0, high: float = 255, at_low: float = 0.01, at_high: float = 0.01) -> Appearance:
    return Appearance(low, high, 100, 30, at_low, at_high, np.zeros((32, 32), np.float32))


def named(*facts: CaseFacts) -> dict[str, CaseFacts]:
    return {str(n): f for n, f in enumerate(facts)}


def brief(findings: Iterable[Finding]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(f.code, f.level, f.cases) for f in findings]


def case(case_id: str, mask: str | None = "mask.png", group: str | None = None) -> Case:
    return Case(case_id, f"{case_id}.png", mask, group)


def test_kinds() -> None:
    assert brief(checks.check_kinds(named(fact(), fact(channels=3), fact()))) == []
    assert brief(checks.check_kinds({})) == []
    mixed = named(fact(), fact(shape=(8, 8, 8)), fact())
    few_slices = named(fact(channels=3), fact(shape=(8, 8, 8)), fact(channels=3))
    for facts, advice in ((mixed, False), (few_slices, True)):
        assert brief(checks.check_kinds(facts))[0] == ("mixed_kinds", "fault", ("1",))
        message = next(checks.check_kinds(facts)).message
        assert ("data.axes=ZYX" in message, "one slice" in message) == (advice, True)
    colors = named(fact(channels=3), fact(channels=4), fact(channels=3))
    assert brief(checks.check_kinds(colors)) == [("mixed_kinds", "fault", ("1",))]
    assert "2 with 3 channels (e.g. 0), 1 with 4 channels (e.g. 1)" in next(checks.check_kinds(colors)).message


def test_dtypes() -> None:
    assert brief(checks.check_dtypes(named(fact(), fact()))) == []
    assert brief(checks.check_dtypes(named(fact(), fact(), fact(dtype="uint16")))) == [("mixed_dtypes", "info", ("2",))]


def test_sizes() -> None:
    usual = [fact() for _ in range(5)]
    assert brief(checks.check_sizes({})) == []
    assert brief(checks.check_sizes(named(*usual, fact(shape=(128, 128)), fact(shape=(32, 32))))) == []
    found = list(checks.check_sizes(named(*usual, fact(shape=(128, 129)), fact(shape=(20, 20)))))
    assert brief(found) == [("outlier_size", "info", ("5", "6"))]
    assert "6 has 20 x 20" in found[0].message


def test_spacing() -> None:
    assert brief(checks.check_spacing(named(fact(), fact()))) == []
    same = named(fact(spacing=(1.0, 1.0)), fact(spacing=(1.0, 1.009)))
    assert brief(checks.check_spacing(same)) == []
    different = named(fact(spacing=(1.0, 0.5)), fact(spacing=(1.0, 0.7)), fact(spacing=(1.0, 0.6)))
    found = list(checks.check_spacing(different))
    assert brief(found) == [("mixed_spacing", "info", ())]
    assert "1 x 0.5 to 1 x 0.7" in found[0].message
    assert "data.resample_to=[1, 0.6]" in found[0].message
    assert brief(checks.check_spacing(named(fact(spacing=(1.0, 1.0)), fact()))) == [("unknown_spacing", "info", ("1",))]


def test_constant_images() -> None:
    flat = look(9, 9, 1.0, 1.0)
    facts = named(fact(), fact(appearance=flat), fact(0.0, appearance=flat), fact(None, appearance=flat))
    assert brief(checks.check_constant_images(facts)) == [
        ("constant_image", "fault", ("1",)),
        ("constant_image", "warn", ("2", "3")),
    ]
    assert brief(checks.check_constant_images(named(fact(), fact(appearance=None)))) == []


def test_images_that_are_masks() -> None:
    facts = named(fact(), fact(appearance=look(at_low=0.7, at_high=0.3)), fact(appearance=look(5, 5, 1.0, 1.0)))
    assert brief(checks.check_two_values(facts)) == [("mask_as_image", "warn", ("1",))]
    assert brief(checks.check_saturation(facts)) == [], "named once"


@pytest.mark.parametrize(
    ("clipped", "extreme"), [(look(at_high=0.26), "largest value"), (look(at_low=0.91), "smallest value")]
)
def test_clipped_images(clipped: Appearance, extreme: str) -> None:
    found = list(checks.check_saturation(named(fact(), fact(appearance=clipped), fact())))
    assert brief(found) == [("saturated_image", "warn", ("1",))]
    assert extreme in found[0].message
    whole_set = named(*(fact(appearance=clipped) for _ in range(3)), fact())
    assert brief(checks.check_saturation(whole_set)) == [], "this is how the data set looks"


def test_images_beside_the_limits_are_not_clipped() -> None:
    assert brief(checks.check_saturation(named(fact(appearance=look(at_low=0.9, at_high=0.05)), fact()))) == []
    assert brief(checks.check_saturation(named(fact(appearance=look(at_low=0.05, at_high=0.25)), fact()))) == []


def test_missing_masks(tmp_path: Path) -> None:
    assert brief(checks.check_missing_masks([case("a"), case("b")])) == []
    found = list(checks.check_missing_masks([case("a"), case("b", None)]))
    assert brief(found) == [("unlabeled", "info", ("b",))]
    assert "1 of 2 images have NO mask file" in found[0].message
    assert brief(checks.check_missing_masks([case("a", None)])) == [("no_masks", "fault", ())]
    np.savez(tmp_path / "a.npz", image=np.eye(4), label=np.eye(4))
    (inside,) = checks.check_missing_masks([Case("a", str(tmp_path / "a.npz"), None, None)])
    assert "a.npz::image and a.npz::label" in inside.message


@pytest.mark.parametrize(
    ("same", "others", "images", "found"), [(3, 2, 3, True), (3, 3, 3, False), (2, 0, 2, False), (8, 0, 2, False)]
)
def test_different_images_with_one_mask(same: int, others: int, images: int, found: bool) -> None:
    """Three images or more, and most of the masks; copies of an image may have a copy of its mask."""
    masks = [fact(content=f"{n % images:012d}aaaa") for n in range(same)]
    masks += [fact(content=f"{100 + n:012d}{n:04d}") for n in range(others)]
    expected = [("same_masks", "warn", tuple(map(str, range(same))))]
    assert brief(checks.check_same_masks(named(*masks))) == expected * found
    empty = [fact(0.0, content=f"{n:012d}aaaa") for n in range(same)]
    assert brief(checks.check_same_masks(named(*empty))) == []


@pytest.mark.parametrize(
    ("empty", "code", "level", "said"),
    [
        (1, "empty_masks", "info", "(1%) are there and EMPTY: labeled negatives, 20% .. 50% is usual"),
        (20, "empty_masks", "info", "as usual"),
        (50, "empty_masks", "info", "as usual"),
        (51, "empty_masks", "info", "20% .. 50% is usual"),
        (70, "empty_masks", "info", "is usual"),
        (71, "empty_masks", "warn", "above 70% worth a check"),
        (90, "empty_masks", "warn", "above 90% a fault"),
        (91, "empty_masks", "fault", "91 of 100 masks (91%)"),
        (100, "all_masks_empty", "fault", "all 100 masks"),
    ],
)
def test_empty_masks(empty: int, code: str, level: str, said: str) -> None:
    facts = named(*(fact(0.0) for _ in range(empty)), *(fact() for _ in range(100 - empty)), fact(None))
    (finding,) = checks.check_empty_masks(facts)
    assert (finding.code, finding.level, len(finding.cases)) == (code, level, empty)
    assert said in finding.message


@pytest.mark.parametrize(("empty", "level"), [(19, "info"), (20, "warn"), (50, "warn"), (70, "warn"), (91, "fault")])
def test_empty_masks_that_nobody_vouches_for_are_asked_about(empty: int, level: str) -> None:
    facts = named(*(fact(0.0) for _ in range(empty)), *(fact() for _ in range(100 - empty)))
    (finding,) = checks.check_empty_masks(facts, asks=True)
    assert (finding.code, finding.level) == ("empty_masks", level)
    assert ("has nobody labeled them?" in finding.message) == (level == "warn")


@pytest.mark.parametrize(
    ("column", "said"), [(None, "has nobody labeled them?"), ("has_segmentation", None), ("labeled", None)]
)
def test_a_table_that_says_who_is_labeled_is_not_asked(column: str | None, said: str | None, folder: Path) -> None:
    for name in ("0004", "0005", "0006"):
        write(folder / "masks" / f"{name}.png", np.zeros_like(generate("particles", 0)[1]))
    ids = sorted(path.stem for path in (folder / "images").iterdir())
    rows = [["image", "mask", *([column] if column else [])]]
    rows += [[f"images/{i}.png", f"masks/{i}.png", *(["true"] if column else [])] for i in ids]
    (folder / "manifest.csv").write_text("\n".join(map(",".join, rows)))
    settings = CatalogSettings(layout="manifest")
    (found,) = [f for f in audit(str(folder), settings).findings if f.code == "empty_masks"]
    assert found.level == ("warn" if said else "info")
    assert any((said or "EMPTY") in note for note in open_catalog(str(folder), settings).notes) == bool(said)


def test_missing_masks_are_not_empty_ones() -> None:
    assert brief(checks.check_empty_masks(named(*(fact(None) for _ in range(9)), fact()))) == []
    assert brief(checks.check_empty_masks({})) == []


def test_full_and_tiny_masks() -> None:
    facts = named(fact(1.0), fact(0.999), fact(0.0), fact(0.00009), fact(0.0001), fact(None))
    assert brief(checks.check_full_masks(facts, Meaning())) == [("full_mask", "warn", ("0",))]
    assert brief(checks.check_tiny_foreground(facts)) == [("tiny_foreground", "info", ("3",))]


@pytest.mark.parametrize("version", [2, 3])
def test_labels_inside_an_ome_zarr_are_named_and_can_be_listed(tmp_path: Path, version: int) -> None:
    zarr = pytest.importorskip("zarr")
    square = np.zeros((40, 48), np.uint8)
    square[10:20, 5:25] = 1
    for name in "abc":
        for place, array in (("", square * 90 + 40), ("/labels/cells", square)):
            group = zarr.open_group(str(tmp_path / "images" / f"{name}.zarr") + place, mode="a", zarr_format=version)
            group.create_array("0", data=array)
            scales = [{"axes": [{"name": axis} for axis in "yx"], "datasets": [{"path": "0"}]}]
            group.attrs["ome"] = {"version": "0.5", "multiscales": scales}
    (message,) = [finding.message for finding in audit(str(tmp_path)).findings if finding.code == "no_masks"]
    assert "here a.zarr and a.zarr::labels/cells" in message
    rows = "".join(f"{name}.zarr,{name}.zarr::labels/cells\n" for name in "abc")
    (tmp_path / "images" / "manifest.csv").write_text(f"image,mask\n{rows}")
    facts = audit(str(tmp_path / "images")).facts
    assert [own.counts for own in facts.values()] == [(40 * 48 - 200, 200)] * 3


def test_objects_that_fill_all_images() -> None:
    grains = named(*(fact(1.0, values=(1,), counts=(64,)) for _ in range(3)))
    (semantic,) = checks.check_full_masks(grains, Meaning("instances"))
    assert (semantic.level, "data.task=instances" in semantic.message) == ("fault", True)
    (objects,) = checks.check_full_masks(grains, Meaning("instances", task="instances"))
    assert (objects.code, objects.level) == ("all_masks_full", "info")


def test_masks_without_any_background() -> None:
    full = fact(1.0, values=(255,), counts=(64,))
    (finding,) = checks.check_full_masks(named(full, full, fact(None)), Meaning())
    assert (finding.code, finding.level, finding.cases) == ("all_masks_full", "fault", ("0", "1"))
    assert "all 2 masks hold 255 and nothing else" in finding.message
    several = named(fact(1.0, values=(1, 2), counts=(9, 9)), fact(1.0, values=(2, 3)))
    (finding,) = checks.check_full_masks(several, Meaning())
    assert (finding.code, finding.level) == ("all_masks_full", "warn")
    assert "one of the values 1, 2, 3." in finding.message
    assert brief(checks.check_full_masks(named(full, fact(0.0)), Meaning())) == [("full_mask", "warn", ("0",))]


def test_a_manifest_that_calls_an_empty_mask_segmented() -> None:
    facts = named(fact(0.0), fact(0.0), fact(0.2), fact(None))
    found = brief(checks.check_declared({"0": True, "1": False, "2": True, "3": True, "gone": True}, facts))
    assert found == [("has_segmentation_disagrees", "warn", ("0",))]
    assert brief(checks.check_declared({}, facts)) == []


def test_groups() -> None:
    cases = [case(f"{n}", group=f"g{n % 10}") for n in range(30)]
    assert checks.groups_of(cases)["13"] == "g3"
    assert brief(checks.check_groups(cases)) == []
    assert brief(checks.check_groups([case(f"{n}") for n in range(5)])) == [], "no groups, nothing to say"
    assert checks.groups_of([case("a"), case("b")]) == {}
    assert checks.groups_of([case("a", group="g"), case("b")]) == {"a": "g", "b": "b"}
    few = list(checks.check_groups([case(f"{n}", group=f"g{n % 9}") for n in range(27)]))
    assert brief(few) == [("few_groups", "info", ())]
    giant = [case(f"{n}", group="one") for n in range(80)] + [case(f"s{n}", group=f"g{n}") for n in range(20)]
    assert "worth 1.6 equal ones" in next(checks.check_groups(giant)).message  # 100^2 / (80^2 + 20)


def test_summary_against_counting_by_hand() -> None:
    facts = {
        "a": fact(0.5, (2, 4), values=(0, 1), counts=(4, 4), spacing=(1.0, 2.0)),
        "b": fact(0.25, (4, 4), values=(0, 1, 2, 9), counts=(9, 2, 1, 4), dtype="uint16", spacing=(3.0, 2.0)),
        "c": fact(None, (2, 4), appearance=look(-3, 400)),
    }
    listing = Listing("folders", (case("a", group="g"), case("b"), case("c", None), case("broken")), ("a note",))
    summary = summarize("root", listing, facts, (0, 1, 2), 9)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["counts"] == {"images": 4, "readable": 3, "labeled": 3, "unlabeled": 1, "groups": 4}
    assert summary["dtypes"] == {"uint8": 2, "uint16": 1}
    assert summary["channels"] == {"1": 3}
    assert summary["shapes"]["frequent"] == [{"shape": [2, 4], "cases": 2}, {"shape": [4, 4], "cases": 1}]
    assert (summary["shapes"]["min"], summary["shapes"]["median"]) == ([2, 4], [2, 4])
    assert (summary["shapes"]["max"], summary["shapes"]["different"]) == ([4, 4], 2)
    assert summary["spacing"] == {"known": 2, "min": [1, 2], "median": [2, 2], "max": [3, 2]}
    assert (summary["intensity"]["low"], summary["intensity"]["high"]) == (-3, 400)
    assert summary["mask_values"] == [
        {"value": 0, "share": 13 / 24, "masks": 2},
        {"value": 1, "share": 6 / 24, "masks": 2},
        {"value": 2, "share": 1 / 24, "masks": 1},
        {"value": 9, "share": 4 / 24, "masks": 1},
    ]
    assert summary["foreground"]["mean"] == pytest.approx(0.375)
    assert summary["foreground"]["empty"] == 0
    assert [row["cases"] for row in summary["classes"]] == [2, 2, 1]
    assert summary["classes"][1]["share"] == measure_spread([4 / 8, 2 / 12])
    assert summary["classes"][2]["share"]["max"] == pytest.approx(1 / 12)
    assert summary["notes"] == ["a note"]


def test_classes_have_the_names_of_the_layout_unless_others_are_asked_for() -> None:
    listing = Listing("nnunet", (case("a"),), label_values=(0, 3), class_names=("background", "liver"))
    facts = {"a": fact(0.5, values=(0, 3), counts=(1, 1))}
    assert [row["name"] for row in summarize("root", listing, facts, (0, 3), None)["classes"]] == [
        "background",
        "liver",
    ]
    assert [row["name"] for row in summarize("root", listing, facts, (3, 0), None)["classes"]] == [None, None]


def test_spread() -> None:
    assert measure_spread([]) is None
    assert measure_spread([1, 2, 6]) == pytest.approx(
        {"mean": 3, "sd": 14**0.5 / 3**0.5, "min": 1, "median": 2, "max": 6}
    )


def test_summary_of_nothing_readable() -> None:
    summary = summarize("root", Listing("folders", (case("a"),)), {}, (0, 1), None)
    assert [summary[k] for k in ("shapes", "spacing", "intensity", "foreground")] == [None] * 4
    assert summary["classes"][1] == {"value": 1, "name": None, "cases": 0, "share": None}


def write(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 cases with masks of 0 and 1."""
    write_dataset(tmp_path / "set", "particles", 12)
    return tmp_path / "set"


def codes(result: Audit) -> dict[str, tuple[str, ...]]:
    return {f"{f.level} {f.code}": f.cases for f in result.findings}


def test_a_clean_folder_gives_no_findings(folder: Path) -> None:
    result = audit(str(folder))
    assert result.findings == ()
    assert result.meaning.label_values == (0, 1)
    assert [result.summary[k] for k in ("faults", "warnings", "infos")] == [0, 0, 0]
    assert result.summary["foreground"]["mean"] == pytest.approx(
        np.mean([generate("particles", n)[1].mean() for n in range(12)])
    )


def test_a_folder_of_volumes(sheets_dir: Path) -> None:
    result = audit(str(sheets_dir))
    assert result.findings == ()
    assert result.summary["shapes"]["min"] == [32, 64, 64]


def test_everything_planted_is_found_in_one_go(folder: Path) -> None:
    images, masks = folder / "images", folder / "masks"
    image, mask = generate("particles", 0)
    (images / "0001.png").write_bytes((images / "0001.png").read_bytes()[:300])
    (masks / "0002.png").write_bytes(b"no image")
    write(masks / "0003.png", mask[:50])
    write(masks / "0004.png", mask * 255)
    (masks / "0005.png").unlink()
    write(masks / "0006.png", mask * 0)
    write(masks / "0007.png", mask * 0 + 1)
    write(images / "0008.png", image * 0 + 7)
    write(images / "copy.png", image)
    write(masks / "copy.png", 1 - mask)
    write(images / "turned.png", cv2.resize(np.rot90(generate("particles", 9)[0]).copy(), (90, 90)))
    write(masks / "stray.png", mask)
    result = audit(str(folder))
    found = codes(result)
    unreadable = {i for code, cases in found.items() if code.startswith("fault unreadable") for i in cases}
    unreadable |= {i for f in result.findings if f.code == "unreadable" for i in f.cases}
    assert unreadable == {"0001", "0002"}
    rest = {code: cases for code, cases in found.items() if "unreadable" not in code}
    assert rest == {
        "fault size_mismatch": ("0003",),
        "fault unexpected_values": ("0004",),
        "fault constant_image": ("0008",),
        "fault conflicting_masks": ("0000", "copy"),
        "warn unpaired_mask": ("stray",),
        "warn full_mask": ("0007",),
        "warn near_duplicate": ("0009", "turned"),
        "info unlabeled": ("0005", "turned"),
        "info empty_masks": ("0006",),
    }
    assert [f.level for f in result.findings] == sorted((f.level for f in result.findings), key="fwi".find)
    assert set(result.facts) == {c.id for c in result.listing.cases} - {"0001", "0002", "0003"}
    assert result.summary["copies"]["exact"] == (("0000", "copy"),)
    assert json.loads(json.dumps(result.summary))["copies"]["near"] == [["0009", "turned"]]
    assert result.summary["faults"] == sum(f.level == "fault" for f in result.findings) >= 5


def test_label_settings_are_used(folder: Path) -> None:
    mask = generate("particles", 4)[1]
    write(folder / "masks" / "0004.png", mask * 255)
    assert "fault unexpected_values" in codes(audit(str(folder)))
    mapped = audit(str(folder), CatalogSettings(meaning=Meaning(label_map={255: 1})))
    assert mapped.findings == ()
    assert mapped.facts["0004"].foreground == pytest.approx(mask.mean())
    left_out = audit(str(folder), CatalogSettings(meaning=Meaning(ignore_value=255)))
    assert codes(left_out) == {"info empty_masks": ("0004",)}
    swapped = audit(str(folder), CatalogSettings(meaning=Meaning(label_values=(1, 0), ignore_value=255)))
    assert swapped.facts["0000"].foreground == pytest.approx(1 - generate("particles", 0)[1].mean())
    assert swapped.meaning.label_values == (1, 0)
    assert "fault unexpected_values" in codes(audit(str(folder), CatalogSettings(meaning=Meaning(label_values=(0, 1)))))


def test_groups_are_used(folder: Path, tmp_path: Path) -> None:
    write(folder / "images" / "copy.png", generate("particles", 0)[0])
    write(folder / "masks" / "copy.png", generate("particles", 0)[1])
    assert codes(audit(str(folder))) == {"warn duplicate_image": ("0000", "copy")}
    groups = tmp_path / "groups.csv"
    with groups.open("w", newline="") as file:
        csv.writer(file).writerows([("name", "group"), *((c.id, c.id) for c in audit(str(folder)).listing.cases)])
    found = audit(str(folder), CatalogSettings(groups=groups))
    assert codes(found) == {"fault duplicate_across_groups": ("0000", "copy")}
    assert found.summary["counts"]["groups"] == 13


def test_each_case_is_tracked(folder: Path) -> None:
    seen: list[Any] = []

    def track(items: Iterable[Any], total: int) -> Iterable[Any]:
        assert total == 12
        for item in items:
            seen.append(item)
            yield item

    audit(str(folder), track=track)
    assert len(seen) == 12


def test_what_cannot_be_audited(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        audit(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="It is empty"):
        audit(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="unknown layout 'foldres'"):
        audit(str(folder), CatalogSettings(layout="foldres"))


def test_real_micrographs_are_quiet(emps_dir: Path) -> None:
    result = audit(str(emps_dir))
    assert result.findings == ()
    assert result.summary["counts"] == {"images": 366, "readable": 366, "labeled": 366, "unlabeled": 0, "groups": 247}


def test_real_volumes_hold_scans_of_one_patient(la_half_dir: Path) -> None:
    result = audit(str(la_half_dir))
    assert [(f.code, f.level) for f in result.findings] == [("alike_images", "info")]
    assert "0RZDK210BSMWAA6467LU ~ CMPXO4J23G58J53Q98SZ 0.61" in result.findings[0].message


def test_many_files_of_one_fault_are_one_finding(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", "particles", 9)
    masks = sorted((tmp_path / "data" / "masks").iterdir())
    for path in masks[:5]:
        path.write_bytes(b"")
    found = [f for f in audit(str(tmp_path / "data")).findings if f.code == "unreadable"]
    assert [f.cases for f in found] == [(f"000{n}",) for n in range(5)]
    masks[5].write_bytes(b"")
    (joined,) = (f for f in audit(str(tmp_path / "data")).findings if f.code == "unreadable")
    assert joined.cases == tuple(f"000{n}" for n in range(6))
    assert joined.message.startswith("6 cases cannot be used")
    assert joined.message.count("the file is empty") == 5
