"""The file formats of images and masks: a module for each, and a line for each suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_seg.data.formats.hdf5 import list_hdf5, open_hdf5
from ssl_seg.data.formats.nifti import open_nifti
from ssl_seg.data.formats.nrrd import open_metaimage, open_nrrd
from ssl_seg.data.formats.numpy_files import list_npz, open_npy, open_npz
from ssl_seg.data.formats.raster import open_raster
from ssl_seg.data.formats.stored import Stored
from ssl_seg.data.formats.tiff import open_tiff
from ssl_seg.data.formats.zarr_store import list_zarr, open_zarr
from ssl_seg.data.reading import Reading


@dataclass(frozen=True)
class Format:
    """How files of one kind are read.

    ``magic`` lists the possible leading bytes; it is empty for folders. The functions get the path, the name of the
    array in files that hold several, and how to read it; they may raise any error of a decoder. None: there is nothing
    to list or to read. ``takes_axes``: ``data.axes`` holds for them. ``is_lossy``: they do not keep values.
    ``has_grid``: they say where voxels lie in the world, so that results are written as NIfTI.
    """

    name: str
    magic: tuple[bytes, ...]
    open: Callable[[Path, str, Reading], Stored]
    list_arrays: Callable[[Path], Mapping[str, None]] | None = None
    takes_axes: bool = False
    is_lossy: bool = False
    has_grid: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether an image is a folder; its beginning is then not looked at."""
        return self.magic == ()


_PNG = Format("PNG", (b"\x89PNG\r\n\x1a\n",), lambda path, _key, reading: open_raster(path, reading))
_JPG = Format("JPG", (b"\xff\xd8\xff",), lambda path, _key, reading: open_raster(path, reading), is_lossy=True)
_BMP = Format("BMP", (b"BM",), lambda path, _key, reading: open_raster(path, reading))
_TIFF = Format(
    "TIFF",
    (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    lambda path, _key, reading: open_tiff(path, reading),
    takes_axes=True,
)
_NPY = Format("NPY", (b"\x93NUMPY",), lambda path, _key, reading: open_npy(path, reading), takes_axes=True)
_NPZ = Format("NPZ", (b"PK\x03\x04",), open_npz, list_npz, takes_axes=True)
_NIFTI_SIZES = (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c")  # 348 and 540, in both byte orders
_NIFTI = Format("NIfTI", _NIFTI_SIZES, lambda path, _key, reading: open_nifti(path, reading), has_grid=True)
_NRRD = Format("NRRD", (b"NRRD000",), lambda path, _key, _reading: open_nrrd(path), has_grid=True)
_METAIMAGE = Format(
    "MetaImage",
    (b"ObjectType", b"NDims", b"Comment"),
    lambda path, _key, _reading: open_metaimage(path),
    has_grid=True,
)
_HDF5 = Format("HDF5", (b"\x89HDF\r\n\x1a\n",), open_hdf5, list_hdf5, takes_axes=True)
_ZARR = Format("Zarr", (), open_zarr, list_zarr, takes_axes=True)

FORMATS: dict[str, Format] = {
    ".png": _PNG,
    ".jpg": _JPG,
    ".jpeg": _JPG,
    ".bmp": _BMP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".npy": _NPY,
    ".npz": _NPZ,
    ".nii": _NIFTI,
    ".nii.gz": replace(_NIFTI, name="gzip-compressed NIfTI", magic=(b"\x1f\x8b",)),
    ".nrrd": _NRRD,
    ".mha": _METAIMAGE,
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".zarr": _ZARR,
    ".ome.zarr": _ZARR,
}
"""Suffix, in lower case -> format. Where several fit a name, the longest is meant."""
