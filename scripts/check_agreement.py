"""Do all commands say the same of one run, and is it what the files say? On three data sets unlike those of the tests.

    python scripts/check_agreement.py OUT [--steps 300] [--only tiles volumes few]

Each data set goes through audit, split check, train, evaluate, diagnose and predict on the command line, as a user
would run them. Every figure that two commands state is compared, and each with brute force over the mask files:
numpy on what `predict` wrote. Prints a row a comparison; exit code 1 when one fails.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import tifffile
import yaml
from numpy.typing import NDArray
from scipy import ndimage

NEAR = 1e-6


def make_blobs(rng: np.random.Generator, shape: tuple[int, ...], size: float, share: float) -> NDArray[np.bool_]:
    """Return smooth regions that cover ``share`` of an image, give or take 70 % of it."""
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), size)
    return np.asarray(smooth > np.quantile(smooth, 1 - share * rng.uniform(0.3, 1.7)))


def make_tiles(folder: Path) -> None:
    """1,500 small images, 75 % of their masks empty."""
    rng = np.random.default_rng(1)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for n in range(1500):
        mask = make_blobs(rng, (48, 48), 4, 0.15) if rng.random() < 0.25 else np.zeros((48, 48), bool)
        image = np.clip(rng.normal(100, 15, (48, 48)) + 60 * mask, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"tile-{n:04d}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"tile-{n:04d}.png"), mask.astype(np.uint8) * 255)


def make_volumes(folder: Path) -> None:
    """40 volumes of three sizes with three classes of which the third is in every eighth volume only."""
    rng = np.random.default_rng(2)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for n in range(40):
        shape = [(12, 40, 44), (16, 48, 40), (20, 36, 36)][n % 3]
        mask = np.zeros(shape, np.uint8)
        mask[make_blobs(rng, shape, 4, 0.15)] = 1
        mask[make_blobs(rng, shape, 3, 0.05)] = 2
        if n % 8 == 0:
            mask[make_blobs(rng, shape, 2, 0.004)] = 3
        image = (rng.normal(300, 40, shape) + np.array([0, 120, 240, -200])[mask]).astype(np.float32)
        affine = np.diag([0.8, 0.8, 2.5, 1.0])
        for name, values in (("images", image), ("masks", mask)):
            nibabel.save(nibabel.Nifti1Image(values.T, affine), folder / name / f"patient{n:02d}.nii.gz")


def make_few(folder: Path) -> None:
    """30 images of many sizes in 16 bits, 20 of them with a mask."""
    rng = np.random.default_rng(3)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for n in range(30):
        shape = tuple(int(v) for v in rng.integers(70, 180, 2))
        mask = make_blobs(rng, shape, 6, 0.2)
        image = (rng.normal(9000, 1500, shape) + 5000 * mask).clip(0).astype(np.uint16)
        tifffile.imwrite(folder / "images" / f"Slide {n} (a).tif", image)
        if n % 3:
            tifffile.imwrite(folder / "masks" / f"Slide {n} (a).tif", mask.astype(np.uint8))


@dataclass(frozen=True)
class DataSet:
    """A data set and how a network is trained on it in little time."""

    make: Callable[[Path], None]
    num_classes: int
    options: tuple[str, ...]


DATA = {
    "tiles": DataSet(make_tiles, 2, ("--labels", "0.10", "--set", "data.patch_size=[48,48]")),
    "volumes": DataSet(make_volumes, 4, ("--labels", "0.5", "--set", "data.patch_size=[16,32,32]")),
    "few": DataSet(make_few, 2, ("--labels", "1.0", "--set", "data.patch_size=[64,64]")),
}
SMALL = ("--network", "basic_unet", "--set", "network.features=8", "--set", "optim.lr=0.003")


@dataclass
class Report:
    """Comparisons made so far."""

    rows: list[tuple[bool, str]] = field(default_factory=list)

    def same(self, what: str, *values: Any) -> None:
        """Take values that must agree: numbers to rounding, anything else exactly."""
        first = values[0]
        ok = all(_agree(first, other) for other in values[1:])
        self.rows.append((ok, f"{what}: {' = '.join(_show(v) for v in values)}"))
        print("ok   " if ok else "FAIL ", self.rows[-1][1], flush=True)


def _agree(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float | int):
        return abs(a - b) < NEAR
    return bool(a == b)


def _show(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def run(*arguments: object, allow: tuple[int, ...] = (0,)) -> str:
    """Run the command line and return its standard output; stop with all of it where it fails."""
    command = [sys.executable, "-m", "ssl_seg", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in allow or "Traceback" in done.stderr:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def read_mask(path: Path) -> NDArray[Any]:
    """Return a mask in the order (z, y, x)."""
    if path.name.endswith(".nii.gz"):
        return np.asarray(nibabel.load(path).dataobj).T
    return tifffile.imread(path) if path.suffix == ".tif" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def find_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by their names without endings."""
    return {p.name.removesuffix(".nii.gz").removesuffix(p.suffix): p for p in sorted(folder.iterdir())}


def dice(pred: NDArray[Any], true: NDArray[Any]) -> float | None:
    """Return 2 |A and B| / (|A| + |B|); None where both are empty."""
    size = int(pred.sum()) + int(true.sum())
    return 2 * int((pred & true).sum()) / size if size else None


def count(pairs: list[tuple[NDArray[Any], NDArray[Any]]], num_classes: int) -> dict[str, Any]:
    """Return the scores of pairs of masks (prediction, truth) of class numbers, by brute force."""
    flat = [np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1)]
    classes = range(1, num_classes)
    present = [k for k in classes if (flat[1] == k).any()]
    by_class = {k: dice(flat[0] == k, flat[1] == k) for k in present}
    return {
        "f1": dice(flat[0] > 0, flat[1] > 0) or 0.0,
        "f1_macro": float(np.mean([v or 0.0 for v in by_class.values()])),
        "by_class": by_class,
        "absent": [k for k in classes if k not in present],
        "predicted": float((flat[0] > 0).mean()),
        "true": float((flat[1] > 0).mean()),
        "empty": sum(not t.any() for _, t in pairs),
    }


def check(name: str, out: Path, steps: int, report: Report) -> None:
    """Take one data set through the commands."""
    data, kind = out / name, DATA[name]
    shutil.rmtree(data, ignore_errors=True)
    kind.make(data / "data")
    folder, place = data / "data", data / "run"
    masks = find_files(folder / "masks")
    values = sorted({int(v) for path in masks.values() for v in np.unique(read_mask(path))})
    to_class = {value: k for k, value in enumerate(values)}

    audit = json.loads(run("data", "audit", folder, "--json"))
    counts = audit["summary"]["counts"]
    report.same(f"{name}: images, audit = files", counts["images"], len(find_files(folder / "images")))
    report.same(f"{name}: masks, audit = files", counts["labeled"], len(masks))

    trained = run("train", "--data", folder, "--out", place, "--steps", steps, *SMALL, *kind.options, allow=(0, 3))
    split = yaml.safe_load((place / "split.yaml").read_text())
    run("split", "check", place / "split.yaml", "--data", folder)
    final = json.loads((place / "scores.json").read_text())
    used = next(row for row in final["networks"] if all(row[k] == final["used"][k] for k in ("net", "source", "step")))
    run("predict", place, folder / "images", data / "predicted")
    predicted = find_files(data / "predicted")

    def pairs(ids: list[str]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for case in ids:
            both = (read_mask(predicted[case]), read_mask(masks[case]))
            yield tuple(np.vectorize(to_class.get)(values) for values in both)  # type: ignore[misc]

    true = count(list(pairs(split["val"])), kind.num_classes)
    evaluated = json.loads(run("evaluate", place, "--json"))
    diagnosed = json.loads(run("diagnose", place, "--json", "--seconds", 3600, allow=(0, 3)))
    where = f"{name}, validation"
    report.same(f"{where}: network, scores.json = evaluate", used["net"], evaluated["which"])
    report.same(
        f"{where}: pooled F1, files = scores.json = evaluate = diagnose",
        true["f1"], used["pooled"]["f1"], evaluated["pooled"]["f1"], diagnosed["statistics"]["scores"]["f1"],
    )  # fmt: skip
    report.same(
        f"{where}: F1 mean of classes, files = scores.json = evaluate",
        true["f1_macro"], used["pooled"]["f1_macro"], evaluated["pooled"]["f1_macro"],
    )  # fmt: skip
    report.same(f"{where}: said at the end of train", f"{used['pooled']['f1_macro']:.3f}" in trained, True)
    report.same(
        f"{where}: empty masks, files = evaluate", true["empty"], len(split["val"]) - evaluated["mean"]["n_positives"]
    )
    verdict = json.loads((place / "events.jsonl").read_text().splitlines()[-1])
    report.same(f"{where}: verdict, train = diagnose", verdict["verdict"], diagnosed["verdict"]["level"])
    report.same(
        f"{where}: leading finding, train = diagnose",
        verdict["codes"][:1],
        [f["code"] for f in diagnosed["findings"]][:1],
    )

    sealed = count(list(pairs(split["test"])), kind.num_classes)
    tested = json.loads(run("evaluate", place, "--test", "--json"))
    report.same(f"{name}, test: pooled F1, files = evaluate --test", sealed["f1"], tested["pooled"]["f1"])
    report.same(f"{name}, test: F1 mean of classes", sealed["f1_macro"], tested["pooled"]["f1_macro"])
    report.same(f"{name}, test: openings", tested["test_openings"], 1)
    again = json.loads(run("evaluate", place, "--test", "--json"))
    report.same(f"{name}, test: openings, once more", again["test_openings"], 2)


def main() -> None:
    """Check the data sets asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=DATA, default=list(DATA))
    arguments = parser.parse_args()
    report = Report()
    for name in arguments.only:
        check(name, arguments.out, arguments.steps, report)
    failed = sum(not ok for ok, _ in report.rows)
    print(f"{len(report.rows) - failed} of {len(report.rows)} comparisons agree")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
