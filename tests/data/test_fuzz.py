"""Damaged files of every format: one ``DataError`` that names the file, or an array of the shape claimed. No third way.

Undetected flips in pixels are allowed: most formats carry no checksum.
"""

from __future__ import annotations

import bz2
import gzip
import re
import resource
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from ssl_seg.data.volumes import list_arrays, open_image
from ssl_seg.errors import DataError

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
nibabel = pytest.importorskip("nibabel")

RNG = np.random.default_rng(5)
PLANE = RNG.integers(0, 9, (13, 17), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
STACK = RNG.integers(0, 900, (6, 11, 9), dtype=np.int16)

MUTATIONS = 22
"""Damaged versions of a file; of a folder, all its files together."""

MEMORY = 200 * 2**20
"""Bytes that a small file may take, however damaged: three times what is decoded whatever its size."""


def save_nifti(path: Path, array: np.ndarray, kind: str = "Nifti1Image") -> None:
    getattr(nibabel, kind)(array.T, np.eye(4)).to_filename(path)


def save_hdf5(path: Path, array: np.ndarray, libver: str = "earliest", **options: object) -> None:
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("image", data=array, **options)
        file.create_dataset("volumes/label", data=PLANE)


def save_zarr(path: Path, array: np.ndarray, version: int) -> None:
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("image", data=array, chunks=(4, 8, 9)[-array.ndim :])


def save_ome(path: Path, array: np.ndarray, version: int) -> None:
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("0", data=array, chunks=(4, 8, 9))
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [3.0, 0.5, 0.5]}]}
    scales = [{"version": "0.4", "axes": axes, "datasets": [level]}]
    group.attrs.update({"multiscales": scales} if version == 2 else {"ome": {"version": "0.5", "multiscales": scales}})


def save_nrrd(path: Path, array: np.ndarray, encoding: str) -> None:
    sizes = " ".join(map(str, array.shape[::-1]))
    header = f"NRRD0005\ntype: {array.dtype}\ndimension: {array.ndim}\nsizes: {sizes}\nencoding: {encoding}\n"
    pack = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}[encoding]
    path.write_bytes(f"{header}endian: little\n\n".encode() + pack(array.tobytes()))


def save_metaimage(path: Path, array: np.ndarray, *, compressed: bool) -> None:
    sizes, kind = " ".join(map(str, array.shape[::-1])), {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}[array.dtype.name]
    header = f"ObjectType = Image\nNDims = {array.ndim}\nCompressedData = {compressed}\nDimSize = {sizes}\n"
    data = zlib.compress(array.tobytes()) if compressed else array.tobytes()
    path.write_bytes(f"{header}ElementType = {kind}\nElementDataFile = LOCAL\n".encode() + data)


WHOLE: dict[str, Callable[[Path], object]] = {
    "gray.png": lambda path: cv2.imwrite(str(path), PLANE),
    "color.png": lambda path: cv2.imwrite(str(path), COLOR),
    "gray.jpg": lambda path: cv2.imwrite(str(path), PLANE),
    "color.jpeg": lambda path: cv2.imwrite(str(path), COLOR),
    "gray.bmp": lambda path: cv2.imwrite(str(path), PLANE),
    "mapped_plane.tif": lambda path: tifffile.imwrite(path, PLANE),
    "mapped_stack.tif": lambda path: tifffile.imwrite(path, STACK, photometric="minisblack"),
    "zlib.tif": lambda path: tifffile.imwrite(path, STACK, photometric="minisblack", compression="zlib"),
    "color.tiff": lambda path: tifffile.imwrite(path, COLOR, photometric="rgb"),
    "big_mapped.tif": lambda path: tifffile.imwrite(path, STACK, photometric="minisblack", bigtiff=True),
    "big_zlib.tif": lambda path: tifffile.imwrite(path, PLANE, bigtiff=True, compression="zlib"),
    "imagej.tif": lambda path: tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX", "unit": "um"}),
    "plane.npy": lambda path: np.save(path, PLANE),
    "fortran.npy": lambda path: np.save(path, np.asfortranarray(STACK)),
    "stored.npz": lambda path: np.savez(path, image=STACK, label=PLANE),
    "deflated.npz": lambda path: np.savez_compressed(path, image=PLANE),
    "plane.nii": lambda path: save_nifti(path, PLANE),
    "stack.nii": lambda path: save_nifti(path, STACK),
    "second.nii": lambda path: save_nifti(path, STACK, "Nifti2Image"),
    "plane.nii.gz": lambda path: save_nifti(path, PLANE),
    "stack.nii.gz": lambda path: save_nifti(path, STACK),
    "plain.nrrd": lambda path: save_nrrd(path, STACK, "raw"),
    "gzip.nrrd": lambda path: save_nrrd(path, STACK, "gzip"),
    "bzip2.nrrd": lambda path: save_nrrd(path, PLANE, "bzip2"),
    "plain.mha": lambda path: save_metaimage(path, PLANE, compressed=False),
    "zlib.mha": lambda path: save_metaimage(path, STACK, compressed=True),
    "plane.h5": lambda path: save_hdf5(path, PLANE),
    "chunked.h5": lambda path: save_hdf5(path, STACK, chunks=(4, 8, 9), compression="gzip"),
    "checksums.hdf5": lambda path: save_hdf5(path, STACK, "latest", chunks=(4, 8, 9), fletcher32=True),
    "plane_v2.zarr": lambda path: save_zarr(path, PLANE, 2),
    "stack_v3.zarr": lambda path: save_zarr(path, STACK, 3),
    "v04.ome.zarr": lambda path: save_ome(path, STACK, 2),
    "v05.ome.zarr": lambda path: save_ome(path, STACK, 3),
}


def mutate(data: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """Yield damaged versions of a file, the certain ones first."""
    yield b""
    yield b"\x00\xffnot this" + data[10:]
    for _ in range(6):
        yield data[: int(rng.integers(1, max(2, len(data))))]
    for width in (2, 4, 8, 4, 8):
        yield overwrite(data, rng, (2 ** (8 * width - 1) - 1).to_bytes(width, "little"))
    yield enlarge_number(data, rng)
    while True:
        yield flip(data, rng)


def overwrite(data: bytes, rng: np.random.Generator, number: bytes) -> bytes:
    """Write a huge number into the header, where most fields lie at even places."""
    start = 2 * int(rng.integers(0, max(1, min(len(data), 700) // 2)))
    return data[:start] + number + data[start + len(number) :]


def enlarge_number(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace a number that is written out in digits, as in JSON and in the header of NPY."""
    numbers = list(re.finditer(rb"(?<=[ \[(,])\d+(?=[ \]),\n])", data[:4000]))
    if not numbers:
        return flip(data, rng)
    chosen = numbers[int(rng.integers(len(numbers)))]
    return data[: chosen.start()] + b"123456789" + data[chosen.end() :]


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), int(rng.integers(1, 4))):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def read_all(path: Path) -> None:
    """Read a damaged file in every way; each must end well or with an error that names it."""
    for read in (lambda: list_arrays(path), lambda: check_image(path)):
        try:
            read()
        except DataError as error:
            message = str(error)
        else:
            continue
        assert path.name in message
        assert "\n" not in message


@contextmanager
def traced_peak() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the largest number of bytes that Python and numpy held inside the block."""
    tracemalloc.start()
    try:
        peaks: list[int] = []
        yield lambda: peaks[0]
        peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def check_image(path: Path) -> None:
    stored = open_image(str(path))
    image = stored.read()
    assert image.shape == stored.shape
    assert image.dtype == stored.dtype
    assert image.flags.c_contiguous


@pytest.mark.parametrize("name", WHOLE)
def test_damage_is_named_or_harmless(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    WHOLE[name](path)
    check_image(path)
    rng = np.random.default_rng(list(name.encode()))
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    capfd.readouterr()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with traced_peak() as peak:
        for file in files:
            data = file.read_bytes()
            for damaged in islice(mutate(data, rng), max(6, MUTATIONS // len(files))):
                file.write_bytes(damaged)
                read_all(path)
            file.write_bytes(data)
    assert peak() < MEMORY
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2 * MEMORY
    if "jpg" not in name and "jpeg" not in name:  # a flipped bit in the pixels of a JPG is noticed by its decoder only
        assert capfd.readouterr().err == ""
