"""Training patches per second: from each file format, with and without a cache, against MONAI's datasets.

The same volumes are written in every format. Each measurement cuts the same kind of batch (random boxes of image and
mask, z-scored, mirrored); measurements are repeated in turns, so that other load on the machine hits all of them alike,
and ratios are those of medians within one run.

    python scripts/benchmark_loading.py                       # volumes of 96 x 192 x 192
    python scripts/benchmark_loading.py --shape 44 96 72 --patch 32 64 64 --count 16
    python scripts/benchmark_loading.py --busy 0.06 --data DIR --patch 256 256        # waiting beside a GPU

The second table, how a decoded copy on disk should be kept, needs ``pip install zarr blosc2``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from ssl_seg.config import AugmentConfig
from ssl_seg.data.catalog import Catalog, open_catalog
from ssl_seg.data.disk_cache import DiskCache, fill_disk_cache
from ssl_seg.data.loader import PatchSource, make_loader
from ssl_seg.data.sampling import choose_box, derive_rng
from ssl_seg.data.store import CaseStore
from ssl_seg.data.views.transforms import normalize
from ssl_seg.data.volumes import read_image, read_mask, write_mask

Shape = tuple[int, ...]
MEMORY = 2**34
BATCH = 2
BATCHES = {2: 8, 3: 2}
"""Labeled patches that are planned on a GPU, by dimensions."""


def make_volume(index: int, shape: Shape) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return image and mask: smooth structures under noise, which compress about as well as a scan."""
    rng = np.random.default_rng(index)
    smooth = ndimage.zoom(rng.normal(size=tuple(-(-n // 8) for n in shape)), 8, order=1)
    smooth = smooth[tuple(slice(n) for n in shape)]
    image = np.clip(110 + 60 * smooth + rng.normal(0, 4, shape), 0, 255).astype(np.uint8)
    return image, (smooth > 0.3).astype(np.uint8)


def write_tif(path: Path, array: NDArray[np.uint8], compression: str | None) -> None:
    """Write a stack."""
    tifffile.imwrite(path.with_suffix(".tif"), array, compression=compression, photometric="minisblack")


def write_nifti(path: Path, array: NDArray[np.uint8], suffix: str) -> None:
    """Write with unit spacing."""
    write_mask(path.with_name(path.name + suffix), array)


def write_hdf5(path: Path, array: NDArray[np.uint8], **options: Any) -> None:
    """Write one data set."""
    import h5py

    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("image", data=array, **options)


def write_zarr(path: Path, array: NDArray[np.uint8], **options: Any) -> None:
    """Write one array in chunks of 64 voxels along each axis."""
    import zarr

    chunks = tuple(min(64, n) for n in array.shape)
    zarr.create_array(str(path.with_suffix(".zarr")), data=array, chunks=chunks, **options)


WRITERS: dict[str, Callable[[Path, NDArray[np.uint8]], object]] = {
    "tif zlib": lambda path, array: write_tif(path, array, "zlib"),
    "tif": lambda path, array: write_tif(path, array, None),
    "npy": lambda path, array: np.save(path.with_suffix(".npy"), array),
    "npz": lambda path, array: np.savez_compressed(path.with_suffix(".npz"), image=array),
    "nii": lambda path, array: write_nifti(path, array, ".nii"),
    "nii.gz": lambda path, array: write_nifti(path, array, ".nii.gz"),
    "hdf5": write_hdf5,
    "hdf5 gzip": lambda path, array: write_hdf5(path, array, compression="gzip", chunks=True),
    "zarr": lambda path, array: write_zarr(path, array, compressors=None),
    "zarr zstd": write_zarr,
}


def write_dataset(folder: Path, volumes: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]], form: str) -> Catalog:
    """Write all volumes in one format and open them."""
    for n, pair in enumerate(volumes):
        for name, array in zip(("images", "masks"), pair, strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            WRITERS[form](folder / name / f"v{n}", array)
    return open_catalog(str(folder))


def make_source(catalog: Catalog, patch: Shape, memory: int, cache: DiskCache | None = None) -> PatchSource:
    """Return batches of ``BATCH`` labeled patches, mirrored."""
    store = CaseStore(catalog, 1, memory, disk_cache=cache)
    augment = AugmentConfig(rotate90=False, affine=0, intensity=0, cutout=0)
    return PatchSource(store, tuple(c.id for c in catalog.cases), (), (BATCH, 0), patch, 0.0, augment)


def batches_of(source: PatchSource, workers: int) -> Iterator[object]:
    """Return an endless stream of batches."""
    return iter(make_loader(source, 0, 1_000_000, workers, pin_memory=False))


def whole_files(catalog: Catalog, patch: Shape) -> Iterator[object]:
    """Read image and mask anew for every patch: what a loop without any cache does."""
    step = 0
    while True:
        for slot in range(BATCH):
            rng = derive_rng(step, slot)
            case = catalog.cases[int(rng.integers(len(catalog.cases)))]
            image, mask = normalize(read_image(case.image)), read_mask(str(case.mask))
            start = choose_box(mask.shape, patch, rng)
            box = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
            _ = image[(slice(None), *box)].copy(), mask[box].copy()
        step += 1
        yield step


def monai_batches(catalog: Catalog, patch: Shape, workers: int, cache: Path | None) -> Iterator[object]:
    """Return batches of MONAI's CacheDataset, or PersistentDataset with ``cache``, for the same work."""
    from monai import transforms as mt
    from monai.data import CacheDataset, DataLoader, PersistentDataset

    def load(item: dict[str, str]) -> dict[str, Any]:
        return {"image": normalize(read_image(item["image"])), "mask": read_mask(item["mask"])[None]}

    keys = ["image", "mask"]
    steps = [mt.Lambda(load), mt.RandSpatialCropd(keys, patch, random_size=False)]
    steps += [mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)]
    items = [{"image": c.image, "mask": c.mask} for c in catalog.cases] * 50
    if cache is None:
        data = CacheDataset(items[: len(catalog.cases)], mt.Compose(steps), num_workers=1, progress=False)
        data = torch.utils.data.Subset(data, list(range(len(catalog.cases))) * 50)
    else:
        data = PersistentDataset(items, mt.Compose(steps), cache_dir=cache)
    while True:
        yield from DataLoader(data, batch_size=BATCH, num_workers=workers, shuffle=True)


def measure(streams: dict[str, Iterator[object]], seconds: float, rounds: int, warmup: int) -> dict[str, float]:
    """Return the median patches per second of each stream, measured in turns after enough batches to see all cases."""
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for stream in streams.values():
        for _ in range(warmup):
            next(stream)
    for _ in range(rounds):
        for name, stream in streams.items():
            start, count = time.perf_counter(), 0
            while count < 1 or time.perf_counter() - start < seconds:
                next(stream)
                count += 1
            rates[name].append(count * BATCH / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


def show(title: str, rates: dict[str, float], baseline: str, notes: dict[str, str] | None = None) -> None:
    """Print a table of rates and their ratios to the baseline."""
    table = Table(title=title)
    for column, justify in (("", "left"), ("patches/s", "right"), (f"x {baseline}", "right"), ("", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}", f"{rate / rates[baseline]:.2f}", (notes or {}).get(name, ""))
    Console(width=110).print(table)


def compare_formats(root: Path, volumes: list[Any], patch: Shape, seconds: float, rounds: int) -> Catalog:
    """Read patches by box (or whole, where the format allows nothing else) from every format."""
    catalogs = {form: write_dataset(root / form.replace(" ", "_"), volumes, form) for form in WRITERS}
    streams: dict[str, Iterator[object]] = {"tif zlib, whole file": whole_files(catalogs["tif zlib"], patch)}
    notes = {}
    # Too little memory for a decoded volume, as if the data set were much larger than memory.
    memory = volumes[0][0].size // 2
    for form, catalog in catalogs.items():
        source = make_source(catalog, patch, memory)
        streams[form] = batches_of(source, 0)
        first = catalog.cases[0].image
        size = sum(f.stat().st_size for f in (Path(first).rglob("*") if Path(first).is_dir() else [Path(first)]))
        by_box = not isinstance(source.store.load(catalog.cases[0].id).image, np.ndarray)
        notes[form] = f"{'by box' if by_box else 'decoded whole'}, {size / 2**20:.1f} MiB an image"
    cache = DiskCache(root / "copies", 2**40)
    fill_disk_cache(cache, catalogs["tif zlib"])
    streams["tif zlib with decoded copy"] = batches_of(make_source(catalogs["tif zlib"], patch, memory, cache), 0)
    rates = measure(streams, seconds, rounds, 2 * len(volumes))
    show("Reading from disk, nothing kept in memory, no worker", rates, "tif zlib, whole file", notes)
    return catalogs["tif zlib"]


def compare_copies(root: Path, volumes: list[Any], patch: Shape, seconds: float, rounds: int) -> None:
    """Cut boxes from decoded copies in several forms; nothing but the reading."""
    import blosc2
    import zarr

    images = [image for image, _ in volumes]
    folder = root / "forms"
    folder.mkdir()
    chunks = tuple(min(64, n) for n in images[0].shape)
    for n, image in enumerate(images):
        np.save(folder / f"{n}.npy", image)
        blosc2.asarray(image, chunks=chunks, urlpath=str(folder / f"{n}.b2nd"), mode="w")
        zarr.create_array(str(folder / f"{n}.zarr"), data=image, chunks=chunks)
    openers: dict[str, Callable[[int], Any]] = {
        "npy": lambda n: np.load(folder / f"{n}.npy", mmap_mode="r"),
        "blosc2": lambda n: blosc2.open(str(folder / f"{n}.b2nd"), mode="r"),
        "zarr zstd": lambda n: zarr.open_array(str(folder / f"{n}.zarr"), mode="r"),
    }

    def boxes(opener: Callable[[int], Any]) -> Iterator[object]:
        step = 0
        while True:
            for slot in range(BATCH):
                rng = derive_rng(step, slot)
                start = choose_box(images[0].shape, patch, rng)
                box = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
                _ = np.array(opener(int(rng.integers(len(images))))[box])
            step += 1
            yield step

    sizes = {
        name: sum(f.stat().st_size for p in folder.glob(f"*.{suffix}") for f in ([p] if p.is_file() else p.rglob("*")))
        for name, suffix in (("npy", "npy"), ("blosc2", "b2nd"), ("zarr zstd", "zarr"))
    }
    rates = measure({name: boxes(opener) for name, opener in openers.items()}, seconds, rounds, len(images))
    notes = {name: f"{size / len(images) / 2**20:.1f} MiB a volume" for name, size in sizes.items()}
    show("Forms of a decoded copy, boxes only", rates, "npy", notes)


def compare_loaders(root: Path, catalog: Catalog, patch: Shape, seconds: float, rounds: int) -> None:
    """Batches from memory with 0, 1 and 2 workers, beside MONAI's datasets."""
    streams: dict[str, Iterator[object]] = {}
    for workers in (0, 1, 2):
        streams[f"ssl_seg, {workers} workers"] = batches_of(make_source(catalog, patch, MEMORY), workers)
        streams[f"MONAI CacheDataset, {workers} workers"] = monai_batches(catalog, patch, workers, None)
        streams[f"MONAI PersistentDataset, {workers} workers"] = monai_batches(catalog, patch, workers, root / "monai")
    rates = measure(streams, seconds, rounds, 2 * len(catalog.cases))
    show("Batches, data set in memory (PersistentDataset: on disk)", rates, "MONAI CacheDataset, 0 workers")


def compare_waiting(source: PatchSource, step: float, steps: int) -> None:
    """How long a training waits for its batches while a step keeps its core busy and leaves the others alone.

    So it is beside a GPU: this process sends commands for the whole of a step.
    """
    table = Table(title=f"Waiting for batches beside steps of {1000 * step:.0f} ms, in turns")
    for column in ("workers", "waits, ms", "share of the time"):
        table.add_column(column, justify="right")
    waits = dict[int, list[float]]({0: [], 1: [], 2: []})
    for workers in [*waits] * 2:
        batches = batches_of(source, workers)
        for number in range(steps):
            start = time.perf_counter()
            next(batches)
            if number >= steps // 2:
                waits[workers].append(time.perf_counter() - start)
            end = time.perf_counter() + step
            while time.perf_counter() < end:
                pass
    for workers, found in waits.items():
        wait = statistics.mean(found)
        table.add_row(str(workers), f"{1000 * wait:.1f}", f"{wait / (wait + step):.0%}")
    Console(width=110).print(table)


def open_trained(data: str, patch: Shape) -> PatchSource:
    """Return the batches that a GPU is planned to get from a data set: as many labeled patches as unlabeled ones."""
    catalog = open_catalog(data)
    ids, count = tuple(c.id for c in catalog.cases), BATCHES[len(patch)]
    labeled = tuple(c.id for c in catalog.labeled)[: max(1, len(ids) // 6)]
    store = CaseStore(catalog, catalog.channels, MEMORY)
    return PatchSource(store, labeled, ids, (count, count), patch, 0.0, AugmentConfig(cutmix=0.5))


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 192, 192), help="size of a volume")
    parser.add_argument("--patch", type=int, nargs="+", default=(32, 64, 64), help="size of a patch")
    parser.add_argument("--count", type=int, default=6, help="number of volumes")
    parser.add_argument("--seconds", type=float, default=0.7, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--busy", type=float, metavar="SECONDS", help="time a step, and measure the waiting instead")
    parser.add_argument("--data", help="with --busy: the images; give --patch too")
    args = parser.parse_args()
    patch = tuple(args.patch)
    if args.busy:
        torch.set_num_threads(1)
        compare_waiting(open_trained(args.data, patch), args.busy, 120)
        return
    volumes = [make_volume(n, tuple(args.shape)) for n in range(args.count)]
    with tempfile.TemporaryDirectory() as folder:
        catalog = compare_formats(Path(folder), volumes, patch, args.seconds, args.rounds)
        compare_copies(Path(folder), volumes, patch, args.seconds, args.rounds)
        compare_loaders(Path(folder), catalog, patch, args.seconds, args.rounds)


if __name__ == "__main__":
    main()
