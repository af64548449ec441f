"""Random small data sets on disk, and what is truly in them.

A seed decides everything: dimensions, sizes, number types, channels, classes, values of the masks, missing, empty and
partly ignored masks, names, layout, file format, spacing and orientation. Files are written with the formats' own
libraries, not with those functions of the product that are tested by reading them.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import h5py
import nibabel
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

IGNORED = -1
"""Class of a voxel that is left out, in ``CaseTruth.classes``."""

IGNORE_VALUE = 255


@dataclass(frozen=True)
class CaseTruth:
    """One image (C, *S), and the class of each voxel (*S) or None without a mask; x, y, z grow along R, A, S."""

    image: NDArray[Any]
    classes: NDArray[np.int16] | None
    group: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set on disk: what is in it, and the settings that its user has to give."""

    root: Path
    images: Path
    layout: str
    ending: str
    label_values: tuple[int, ...]
    cases: dict[str, CaseTruth]
    settings: tuple[str, ...]
    traits: tuple[str, ...]
    mask_kind: str = "semantic"

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return next(iter(self.cases.values())).image.ndim - 1

    @property
    def labeled(self) -> dict[str, NDArray[np.int16]]:
        """Id -> classes of each voxel, of the cases with a mask."""
        return {i: case.classes for i, case in self.cases.items() if case.classes is not None}

    @property
    def is_trainable(self) -> bool:
        """Whether anyone would expect a training: every class in a dozen cases, of as many groups."""
        holding = [sum(bool((m == k).any()) for m in self.labeled.values()) for k in range(len(self.label_values))]
        groups = {case.group or i for i, case in self.cases.items() if case.classes is not None}
        return min(holding) >= 12 and len(groups) >= 12


Writer = Callable[[Path, NDArray[Any], np.random.Generator], None]


@dataclass(frozen=True)
class Kind:
    """A file format: how images (C, *S) and masks (*S) are written, and what it can hold."""

    ending: str
    write_image: Writer
    write_mask: Writer
    ndims: tuple[int, ...]
    channels: tuple[int, ...]
    dtypes: tuple[str, ...]
    mask_dtypes: tuple[str, ...] = ("uint8",)
    mask_ending: str | None = None
    suffix_layout: bool = True


def _write_cv2(path: Path, array: NDArray[Any], _: np.random.Generator) -> None:
    pixels = array if array.ndim == 2 else np.moveaxis(array, 0, -1)[..., ::-1] if len(array) == 3 else array[0]
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100] if path.suffix in (".jpg", ".JPG") else []
    path.write_bytes(cv2.imencode(path.suffix.lower(), pixels, quality)[1].tobytes())


def _write_tiff(path: Path, array: NDArray[Any], rng: np.random.Generator) -> None:
    """Named axes: channels behind the pixel (S) for two dimensions and three colors, else C of ImageJ, else none."""
    packed = {"compression": "zlib"} if rng.random() < 0.5 else {}
    order = str(rng.choice(["<", ">"]))
    image = array if array.ndim == 2 or len(array) > 1 else array[0]
    if array.ndim == 3 and len(array) in (3, 4):
        extra = {"extrasamples": ["UNSPECIFIED"]} if len(array) == 4 else {}
        tifffile.imwrite(path, np.moveaxis(array, 0, -1), photometric="rgb", byteorder=order, **packed, **extra)
    elif array.ndim >= 3 and len(array) > 1 and array.dtype in (np.uint8, np.uint16, np.float32):
        hyper = array if array.ndim == 3 else np.moveaxis(array, 0, 1)
        tifffile.imwrite(path, hyper, imagej=True, metadata={"axes": "CYX" if array.ndim == 3 else "ZCYX"})
    else:
        tifffile.imwrite(path, image, photometric="minisblack", byteorder=order, **packed)


def _write_tiff_mask(path: Path, mask: NDArray[Any], rng: np.random.Generator) -> None:
    tifffile.imwrite(path, mask, photometric="minisblack", **({"compression": "zlib"} if rng.random() < 0.5 else {}))


def _write_npy(path: Path, array: NDArray[Any], rng: np.random.Generator) -> None:
    if array.ndim == 3 and len(array) == 3:
        array = np.moveaxis(array, 0, -1)  # (Y, X, color)
    elif array.ndim > 2 and len(array) == 1:
        array = array[0]
    np.save(path, np.asfortranarray(array) if rng.random() < 0.3 else array)


def _write_npy_mask(path: Path, mask: NDArray[Any], rng: np.random.Generator) -> None:
    np.save(path, np.asfortranarray(mask) if rng.random() < 0.3 else mask)


def orient(array: NDArray[Any], affine: NDArray[np.floating[Any]], codes: tuple[str, ...]) -> tuple[NDArray[Any], Any]:
    """Return (X, Y, Z[, C]) stored along other directions of the world, and the affine that says so."""
    wanted = nibabel.orientations.axcodes2ornt(codes)
    turned = nibabel.orientations.apply_orientation(array, _turn(wanted, array.ndim))
    return turned, affine @ nibabel.orientations.inv_ornt_aff(_turn(wanted, 3), array.shape[:3])


def _turn(wanted: NDArray[Any], ndim: int) -> NDArray[Any]:
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), wanted)
    return np.vstack([turn, *([[axis, 1]] for axis in range(3, ndim))])


def _write_nifti(path: Path, array: NDArray[Any], rng: np.random.Generator) -> None:
    """Image and mask of a case are given generators of one seed for the place, so that they lie in one place."""
    volume = array.T if array.ndim == 3 or len(array) > 1 else array[0].T
    spacing = np.round(rng.uniform(0.4, 3.0, 3), 3)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.round(rng.uniform(-90, 90, 3), 2)
    codes = tuple(np.array([["R", "L"], ["A", "P"], ["S", "I"]])[range(3), rng.integers(0, 2, 3)][rng.permutation(3)])
    if (
        "mask" in path.parts[-2] or "label" in path.parts[-2] or "_mask" in path.name
    ):  # the mask may be stored otherwise
        codes = codes if rng.random() < 0.5 else ("R", "A", "S")
    stored, affine = orient(volume, affine, codes)
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored), affine)
    image.set_sform(affine, code=int(rng.integers(1, 5)))
    image.set_qform(affine, code=int(rng.integers(0, 3)))
    nibabel.save(image, path)


ALL_INTEGERS = ("uint8", "uint16", "int16", "uint32", "int32")
KINDS = (
    Kind(".png", _write_cv2, _write_cv2, (2,), (1, 3), ("uint8", "uint16"), ("uint8", "uint16")),
    Kind(".jpg", _write_cv2, _write_cv2, (2,), (1, 3), ("uint8",), mask_ending=".png"),
    Kind(".bmp", _write_cv2, _write_cv2, (2,), (1, 3), ("uint8",), mask_ending=".png"),
    Kind(".tif", _write_tiff, _write_tiff_mask, (2, 3), (1, 2, 3, 4), (*ALL_INTEGERS, "float32", "float64"),
         ("uint8", "uint16", "int32", "float32")),
    Kind(".npy", _write_npy, _write_npy_mask, (2, 3), (1, 3), (*ALL_INTEGERS, "float32", "float64"),
         ("uint8", "int64", "bool", "float32")),
    Kind(".nii", _write_nifti, _write_nifti, (3,), (1, 2), ("uint8", "int16", "float32"), ("uint8", "int16")),
    Kind(".nii.gz", _write_nifti, _write_nifti, (3,), (1, 2), ("uint8", "int16", "float64"), ("uint8", "float32")),
)  # fmt: skip

NAMES: dict[str, Callable[[int], str]] = {
    "plain": lambda n: f"img{n}",
    "spaces": lambda n: f"Slide {n} (a)",
    "dots": lambda n: f"v1.{n}.final",
    "umlauts": lambda n: f"Präparat é {n}",
    "folders": lambda n: f"day{n % 3}/cell{n}",
    "signs": lambda n: f"#{n}%41'[x]&$",
    "long": lambda n: f"{'long' * 30}-{n}",
    "numbers": lambda n: f"{n:05d}",
    "patients": lambda n: f"patient{n // 2:02d}_slice{n % 2:02d}",
    "mask in name": lambda n: f"unmasked_{n}_labelfree",
    "parts": lambda n: f"{('train', 'train', 'train', 'val', 'test')[n % 5]}/img{n}",
}


DRESSES: dict[str, tuple[str, ...] | None] = {
    "plain": None,
    "files of servers": None,
    "linked": None,
    "alpha": (".png",),
    "exif": (".jpg",),
    "palette": (".png", ".jpg", ".bmp"),
    "white is zero": (".tif",),
}
"""What is done to files and folders that changes nothing of what they show; the endings it is for, None: all."""


@dataclass
class Recipe:
    """What a seed has drawn."""

    rng: np.random.Generator
    kind: Kind
    ndim: int
    channels: int
    dtype: np.dtype[Any]
    mask_dtype: np.dtype[Any]
    num_classes: int
    names: str
    layout: str
    count: int
    missing: float
    empty: float
    mask_kind: str
    dress: str
    traits: list[str] = field(default_factory=list)


def draw_recipe(seed: int) -> Recipe:
    """Return what the data set of this seed is like."""
    rng = np.random.default_rng([seed, 15])
    kind = KINDS[rng.integers(len(KINDS))]
    ndim = int(rng.choice(kind.ndims))
    layouts = ["folders"] * 3 + ["suffix", "manifest"]
    layouts += ["nnunet"] * 2 if kind.ending in (".nii.gz", ".png", ".tif") else []
    layouts += ["hdf5"] * 2 if kind.ending == ".npy" else []
    recipe = Recipe(
        rng=rng,
        kind=kind,
        ndim=ndim,
        channels=int(rng.choice(kind.channels, p=_first_half(len(kind.channels)))),
        dtype=np.dtype(str(rng.choice(kind.dtypes))),
        mask_dtype=np.dtype(str(rng.choice(kind.mask_dtypes))),
        num_classes=int(rng.choice([2, 2, 2, 3, 4])),
        names=str(rng.choice(list(NAMES))),
        layout=str(rng.choice(layouts)),
        count=int(rng.choice([1, 2, 5, 18, 26, 40], p=[0.03, 0.03, 0.09, 0.35, 0.3, 0.2])),
        missing=float(rng.choice([0, 0.3, 0.6], p=[0.5, 0.3, 0.2])),
        empty=float(rng.choice([0, 0.2, 0.6], p=[0.6, 0.3, 0.1])),
        mask_kind=str(rng.choice(["semantic", "instances", "smooth"], p=[0.7, 0.15, 0.15])),
        dress=str(rng.choice(list(DRESSES))),
    )
    if recipe.layout == "nnunet" and recipe.names in ("folders", "parts"):
        recipe.names = "plain"
    if recipe.mask_kind != "semantic":
        recipe.num_classes = 2
        if recipe.mask_dtype.kind != "u" or recipe.count < 18 or recipe.layout == "nnunet":
            recipe.mask_kind = "semantic"
    if DRESSES[recipe.dress] is not None and (recipe.kind.ending not in DRESSES[recipe.dress] or recipe.ndim == 3):
        recipe.dress = "plain"
    return recipe


def make_dataset(seed: int, folder: Path) -> DataSet:
    """Write the data set of this seed below ``folder``, which is made."""
    recipe = draw_recipe(seed)
    rng, traits = recipe.rng, recipe.traits
    values = _draw_values(recipe)
    ignored = recipe.mask_kind == "semantic" and bool(
        recipe.mask_dtype.kind != "b" and values[-1] < 255 and rng.random() < 0.2
    )
    with_groups = recipe.layout in ("folders", "manifest") and rng.random() < 0.25
    offset, contrast = _draw_intensity(recipe)
    cases: dict[str, CaseTruth] = {}
    for n in range(recipe.count):
        classes = _draw_classes(recipe)
        image = _draw_image(recipe, classes, offset, contrast)
        if ignored and rng.random() < 0.5:
            classes[..., : classes.shape[-1] // 4] = IGNORED
        has_mask = n < 2 or rng.random() >= recipe.missing
        cases[NAMES[recipe.names](n)] = CaseTruth(
            image, classes if has_mask else None, f"paper {n // 2}" if with_groups else None
        )
    if recipe.names == "patients" and not with_groups and recipe.count >= 18 and recipe.layout != "hdf5":
        cases = {i: replace(case, group=i.partition("_")[0]) for i, case in cases.items()}
    if recipe.count >= 18 and rng.random() < 0.15:
        traits.append("exact copies")
        first, second = list(cases)[3:5]
        cases[second] = CaseTruth(cases[first].image, cases[first].classes, cases[second].group)
    root = folder / str(rng.choice(["data", "Meine Daten", "set.v1"]))
    images, layout = LAYOUTS[recipe.layout](root, recipe, values, cases)
    _dress_folder(root, recipe)
    if with_groups and recipe.layout == "folders":
        _write_csv(root / "groups.csv", [["name", "group"], *([i, case.group] for i, case in cases.items())])
        traits.append("groups.csv")
    settings = [] if not ignored else [f"data.ignore_value={IGNORE_VALUE}"]
    if ignored and recipe.layout == "nnunet":
        settings = []  # dataset.json says it
    needs_values = recipe.mask_kind == "semantic" and values not in ((0, 255), tuple(range(len(values))))
    if needs_values and recipe.layout != "nnunet":
        settings.append(f"data.label_values={list(values)}")
    traits += [
        f"{recipe.count} {recipe.ndim}D {recipe.dtype} {recipe.kind.ending} x{recipe.channels}", recipe.layout,
        f"{recipe.names!r}",
        f"masks {recipe.mask_dtype} {values}", f"missing {recipe.missing}", f"empty {recipe.empty}",
        *(["ignored"] if ignored else []),
        f"{recipe.mask_kind} masks",
        recipe.dress,
    ]  # fmt: skip
    return DataSet(
        root, images, layout, recipe.kind.ending, values, cases, tuple(settings), tuple(traits), recipe.mask_kind
    )


def _first_half(count: int) -> list[float]:
    return [1.0] if count == 1 else [0.5, *[0.5 / (count - 1)] * (count - 1)]


def _draw_values(recipe: Recipe) -> tuple[int, ...]:
    """Return the value of each class in the files, background first."""
    if recipe.mask_dtype.kind == "b":
        recipe.num_classes = 2
    usual = tuple(range(recipe.num_classes))
    if recipe.mask_kind == "smooth":
        return (0, 255)  # of the masks that are written
    if recipe.mask_kind == "instances" or recipe.dress == "palette":
        return usual
    if recipe.mask_dtype.kind == "b" or recipe.layout == "nnunet" or recipe.rng.random() < 0.6:
        return usual
    if recipe.num_classes == 2:
        return (0, 255) if recipe.rng.random() < 0.7 else (0, 7)
    return (0, *(int(v) for v in np.sort(recipe.rng.choice(np.arange(2, 120), recipe.num_classes - 1, replace=False))))


def _draw_intensity(recipe: Recipe) -> tuple[float, float]:
    """Return where gray values lie and how far the classes are apart, so that no number type overflows."""
    if recipe.dtype == np.uint8:
        return 70.0, 40.0
    if recipe.dtype.kind == "f" and recipe.rng.random() < 0.4:
        return float(recipe.rng.choice([0.3, -1.0])), 0.2
    return 900.0, 300.0


def _draw_classes(recipe: Recipe) -> NDArray[np.int16]:
    rng = recipe.rng
    low, high = ((20, 72) if recipe.ndim == 2 else (12, 40)) if rng.random() < 0.9 else (9, 20)
    shape = tuple(int(v) for v in rng.integers(low, high, recipe.ndim))
    classes = np.zeros(shape, np.int16)
    if rng.random() >= recipe.empty:
        for k in range(1, recipe.num_classes):
            smooth = ndimage.gaussian_filter(rng.normal(size=shape), 3)
            classes[smooth > np.quantile(smooth, 1 - rng.uniform(0.05, 0.3))] = k
    return classes


def _draw_image(recipe: Recipe, classes: NDArray[np.int16], offset: float, contrast: float) -> NDArray[Any]:
    noise = recipe.rng.normal(offset, contrast / 4, (recipe.channels, *classes.shape))
    signs = np.array([1, -0.5, 0.7, 0.3])[: recipe.channels].reshape(-1, *[1] * recipe.ndim)
    image = noise + contrast * classes * signs
    if recipe.dtype.kind in "iu":
        info = np.iinfo(recipe.dtype)
        image = np.clip(np.round(image), max(info.min, 0), info.max)
    return np.asarray(image, recipe.dtype)


def _dress_folder(root: Path, recipe: Recipe) -> None:
    """Add what servers leave behind, or put the files elsewhere with links in their place."""
    if recipe.dress == "files of servers":
        folder = next(p.parent for p in sorted(root.rglob("*")) if p.is_file())
        (folder / "@eaDir").mkdir()
        _write_cv2(folder / "@eaDir" / "SYNOPHOTO_THUMB_M.png", np.zeros((9, 9), np.uint8), recipe.rng)
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        _write_cv2(folder / "._img1.png", np.zeros((9, 9), np.uint8), recipe.rng)
    elif recipe.dress == "linked":
        for folder in [p for p in sorted(root.iterdir()) if p.is_dir()]:
            elsewhere = root.parent / "disk" / folder.name
            elsewhere.parent.mkdir(exist_ok=True)
            folder.rename(elsewhere)
            folder.symlink_to(elsewhere, target_is_directory=True)


def write_image(path: Path, image: NDArray[Any], recipe: Recipe, n: int) -> None:
    """Write an image (C, *S) in its format, dressed."""
    if recipe.dress == "alpha" and image.shape[0] in (1, 3):
        opaque = np.full(image.shape[1:], np.iinfo(image.dtype).max, image.dtype)
        colors = np.repeat(image, 3, axis=0) if len(image) == 1 else image
        path.write_bytes(cv2.imencode(".png", np.dstack([*colors[::-1], opaque]))[1].tobytes())
    elif recipe.dress == "exif":
        turned = np.rot90(np.moveaxis(image, 0, -1), 1)  # turned to the left, with the tag that turns it back
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = np.ascontiguousarray(turned[..., 0] if len(image) == 1 else turned)
        Image.fromarray(pixels).save(path, "JPEG", quality=100, subsampling=0, exif=exif)
    elif recipe.dress == "white is zero" and image.shape[0] == 1 and image.dtype.kind == "u":
        tifffile.imwrite(path, np.iinfo(image.dtype).max - image[0], photometric="miniswhite")
    else:
        recipe.kind.write_image(path, image, _place(recipe, n))


def write_mask(path: Path, classes: NDArray[np.int16], values: tuple[int, ...], recipe: Recipe, n: int) -> None:
    """Write a mask (*S): the values of its classes, the numbers of its objects, or the gray of a resized one."""
    if recipe.mask_kind == "instances":
        stored = ndimage.label(classes)[0].astype(recipe.mask_dtype)
    elif recipe.mask_kind == "smooth":
        stored = soften(classes).astype(recipe.mask_dtype)
    else:
        stored = to_values(classes, values, recipe.mask_dtype)
    if recipe.dress == "palette" and stored.dtype == np.uint8:
        picture = Image.fromarray(stored, "P")
        picture.putpalette([*(0, 0, 0), *(200, 40, 40), *(40, 200, 40), *(40, 40, 200)] + [7] * 756)
        picture.save(path, "PNG")
    else:
        recipe.kind.write_mask(path, stored, _place(recipe, n))


def soften(classes: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return 0 .. 255 with gray borders that are above 127 exactly in the foreground."""
    near = np.clip(ndimage.gaussian_filter((classes > 0) * 255.0, 0.6), 0, 255)
    return np.round(np.where(classes > 0, np.maximum(near, 140), np.minimum(near, 115)))


def to_values(classes: NDArray[np.int16], values: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a mask with the values of a file."""
    return np.asarray(np.array([*values, IGNORE_VALUE])[classes], dtype)  # IGNORED is the last


def _place(recipe: Recipe, n: int) -> np.random.Generator:
    """Return a generator that is the same for the image and the mask of a case."""
    return np.random.default_rng([n, recipe.count, recipe.ndim])


def _prepare(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_folders(
    root: Path, recipe: Recipe, values: tuple[int, ...], cases: dict[str, CaseTruth]
) -> tuple[Path, str]:
    kind, other_form = recipe.kind, recipe.names == "umlauts"
    images, masks = _folder_names(recipe)
    for n, (case_id, case) in enumerate(cases.items()):
        ending = kind.ending.upper() if kind.ending in (".png", ".tif") and n % 5 == 4 else kind.ending
        write_image(_prepare(root / images / f"{case_id}{ending}"), case.image, recipe, n)
        if case.classes is not None:
            mask_id = unicodedata.normalize("NFD", case_id) if other_form else case_id
            path = _prepare(root / masks / f"{mask_id}{kind.mask_ending or kind.ending}")
            write_mask(path, case.classes, values, recipe, n)
    return root / images, "folders"


def _folder_names(recipe: Recipe) -> tuple[str, str]:
    if recipe.rng.random() < 0.75:
        return "images", "masks"
    return "images", str(recipe.rng.choice(["labels", "mask", "annotations"]))


def _write_suffix(root: Path, recipe: Recipe, values: tuple[int, ...], cases: dict[str, CaseTruth]) -> tuple[Path, str]:
    kind, ending = recipe.kind, str(recipe.rng.choice(["_mask", "_seg", "_label", "_gt"]))
    for n, (case_id, case) in enumerate(cases.items()):
        write_image(_prepare(root / f"{case_id}{kind.ending}"), case.image, recipe, n)
        if case.classes is not None:
            path = _prepare(root / f"{case_id}{ending}{kind.mask_ending or kind.ending}")
            write_mask(path, case.classes, values, recipe, n)
    return root, "suffix"


def _write_manifest(
    root: Path, recipe: Recipe, values: tuple[int, ...], cases: dict[str, CaseTruth]
) -> tuple[Path, str]:
    kind = recipe.kind
    rows: list[list[str]] = [["id", "image", "mask", "group"]]
    for n, (case_id, case) in enumerate(cases.items()):
        image, mask = f"scans/{n}{kind.ending}", f"truth/{n}_mask{kind.mask_ending or kind.ending}"
        write_image(_prepare(root / image), case.image, recipe, n)
        if case.classes is not None:
            write_mask(_prepare(root / mask), case.classes, values, recipe, n)
        rows.append([case_id, image, mask if case.classes is not None else "", case.group or ""])
    _write_csv(root / "manifest.csv", rows)
    return root / "scans", "manifest"


def _write_nnunet(root: Path, recipe: Recipe, values: tuple[int, ...], cases: dict[str, CaseTruth]) -> tuple[Path, str]:
    kind = recipe.kind
    one_file = recipe.ndim == 2 and recipe.channels == 3
    for n, (case_id, case) in enumerate(cases.items()):
        for c, channel in enumerate([case.image] if one_file else case.image[:, None]):
            write_image(_prepare(root / "imagesTr" / f"{case_id}_{c:04d}{kind.ending}"), channel, recipe, n)
        if case.classes is not None:
            path = _prepare(root / "labelsTr" / f"{case_id}{kind.ending}")
            write_mask(path, case.classes, values, recipe, n)
    labels = {"background": 0, **{f"class {k}": k for k in range(1, recipe.num_classes)}}
    has_ignored = any((case.classes == IGNORED).any() for case in cases.values() if case.classes is not None)
    text = {
        "channel_names": {str(c): f"m{c}" for c in range(recipe.channels)},
        "labels": labels | ({"ignore": IGNORE_VALUE} if has_ignored else {}),
        "numTraining": sum(case.classes is not None for case in cases.values()),
        "file_ending": kind.ending,
    }
    (root / "dataset.json").write_text(json.dumps(text))
    return root / "imagesTr", "nnunet"


def _write_hdf5(root: Path, recipe: Recipe, values: tuple[int, ...], cases: dict[str, CaseTruth]) -> tuple[Path, str]:
    for case_id, case in cases.items():
        with h5py.File(_prepare(root / f"{case_id}.h5"), "w") as file:
            image = case.image[0] if recipe.channels == 1 else case.image
            if recipe.channels == 3 and recipe.ndim == 2:
                image = np.moveaxis(case.image, 0, -1)
            packed = {"compression": "gzip", "chunks": True} if recipe.rng.random() < 0.5 else {}
            file.create_dataset("image", data=image, **packed)
            if case.classes is not None:
                file.create_dataset("label", data=to_values(case.classes, values, recipe.mask_dtype), **packed)
    return root, "hdf5"


LAYOUTS: dict[str, Callable[[Path, Recipe, tuple[int, ...], dict[str, CaseTruth]], tuple[Path, str]]] = {
    "folders": _write_folders,
    "suffix": _write_suffix,
    "manifest": _write_manifest,
    "nnunet": _write_nnunet,
    "hdf5": _write_hdf5,
}


def _write_csv(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
