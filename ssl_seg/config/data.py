"""Sections about cases: where they are, how they are divided, drawn and changed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from ssl_seg.config.section import PositiveInt, Section, Seed, Share
from ssl_seg.labels import MaskKind, Task


def check_label_amount(value: float) -> float:
    """Return ``value`` as a float, if it says how many cases are labeled.

    Args:
        value: a share of the labeled training pool in (0, 1], or a whole number of cases above 1. An integer 1 could be
            both, all cases or one, and is neither.

    Raises:
        ValueError: for anything else.
    """
    return _check_range(float(_refuse_bare_one(value)))


def format_label_amount(value: float) -> str:
    """Return an amount of labels as a setting says it: all of them are ``1.0``."""
    return "1.0" if value == 1 else f"{value:g}"


def _refuse_bare_one(value: Any) -> Any:
    if not isinstance(value, float) and str(value).strip() in ("1", "True"):
        raise ValueError(
            "1 can mean all cases or one case: write 1.0 for all; for one case write a small share such as 0.001, "
            "which stands for one case at least"
        )
    return value


def _check_range(value: float) -> float:
    if not 0 < value <= 1 and not (value > 1 and value.is_integer()):
        raise ValueError(f"{value:g} is neither a share in (0, 1] nor a whole number of cases above 1")
    return value


def _check_axes(axes: str) -> str:
    """Return ``axes``, if they are those of an image or a stack."""
    if "T" in axes:
        raise ValueError(f"{axes}: points in time are images of their own: save each as a file, or call T a Z")
    if not {"Y", "X"} <= set(axes) <= set("CZYX") or len(set(axes)) < len(axes):
        raise ValueError(f"{axes} must name Y, X and perhaps Z and C (channels), each once: YX, YXC, CYX, ZYX, CZYX")
    return axes


def _write_amount(value: float) -> float:
    """Return a number of cases as the integer that it is."""
    return int(value) if value > 1 else value


LabelAmount = Annotated[
    float, BeforeValidator(_refuse_bare_one), AfterValidator(_check_range), PlainSerializer(_write_amount, Any)
]
"""See ``check_label_amount``."""


class DataConfig(Section):
    """Where the images are and how they are cut."""

    root: Annotated[str, Field(min_length=1)] = "synthetic:particles"
    """Folder or manifest in one of the layouts of `ssl-seg data layouts`; or synthetic:particles, synthetic:sheets."""
    layout: str = "auto"
    """Layout of the folder; auto recognizes it."""
    groups: str | None = None
    """CSV with the columns name,group (patient, paper, tile); without it, groups.csv in the folder is
    used, or else groups that names show (patient03_slice07). none: no groups."""
    unlabeled: str | None = None
    """Folder of further unlabeled images, without masks."""
    pseudo_labels: str | None = None
    """Folder of pseudo-labels of unlabeled training cases, as `ssl-seg train --rounds` writes them; half of the labeled
    patches are drawn from these cases."""
    mask: MaskKind = "semantic"
    """What mask values are: semantic (each a class), instances (numbers of objects: all but 0 are foreground), binary
    or probability (foreground is above a threshold). Recognized from the masks where it is left out."""
    task: Task = "semantic"
    """What is learned from the masks: the class of each voxel, or the objects (instances) if the masks number objects.
    Objects are learned as three classes: background, inside and boundary."""
    threshold: float | None = None
    """Value above which binary or probability masks are foreground, on the scale of the files; when unset, half of the
    largest value in the masks, and for probability half of the range of the files (1, 255 or 65535)."""
    label_values: tuple[int, ...] = Field(min_length=2)
    """Value of each class in the mask files, background first."""
    label_map: dict[int, int] = Field(default_factory=dict)
    """Mask value of a file -> value that replaces it before anything else: {2: 1} makes class 2 part of class 1."""
    ignore_value: int | None = None
    """Mask value of voxels that losses and metrics ignore."""
    axes: Annotated[str, AfterValidator(_check_axes)] | None = None
    """Axes of the arrays in TIFF, NPY, NPZ, HDF5 and Zarr files, such as ZYX, CYX or YXC; masks leave C out. When
    unset, what the files say, or their shapes suggest."""
    tiles: PositiveInt = 1
    """Least number of parts that each labeled image is cut into: separate cases, with gaps between them. 1 keeps images
    whole. When unset, large images are cut if fewer than three are labeled."""
    nodata: float | Literal["none"] | None = None
    """Value of image voxels without data, such as -9999. Like those that a GeoTIFF declares, they are left out of
    normalization, loss and scores, and predicted as background; none treats all voxels as data."""
    nonfinite: Literal["refuse", "ignore"] = "refuse"
    """What to do about NaN and infinity in images: stop, or leave such voxels out like those without data."""
    window: tuple[float, float] | None = None
    """Lowest and highest intensity that the network tells apart, the same in all images, as in CT; null normalizes each
    image by its own mean and standard deviation."""
    channels: PositiveInt
    """Image channels."""
    patch_size: tuple[PositiveInt, ...] = Field(min_length=2, max_length=3)
    """Size of a training patch and of an inference window; its length says 2D or 3D."""
    spacing: tuple[float, ...] | None = None
    """Size of a voxel along (z, y, x) (NIfTI: superior, anterior, right), for surface distances and resampling; when
    unset, that of each image file."""
    resample_to: tuple[float, ...] | None = None
    """Voxel size that all images are resampled to for the network; masks are predicted and scored as stored."""
    foreground_ratio: Share
    """Share of labeled patches that are centered on a foreground voxel."""
    cache_mb: PositiveInt = 2048
    """Decoded cases kept in memory, per process. Larger volumes are read by box."""
    disk_cache_gb: float = Field(20.0, ge=0)
    """Space for decoded copies of compressed volumes that do not fit into cache_mb; 0 decodes them again each time."""

    @property
    def num_classes(self) -> int:
        """Number of classes including background."""
        return len(self.label_values)

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @model_validator(mode="after")
    def _spacing_has_one_value_an_axis(self) -> DataConfig:
        for name, values in (("spacing", self.spacing), ("resample_to", self.resample_to)):
            if values is not None and (len(values) != self.ndim or min(values) <= 0):
                raise ValueError(f"{name} {values} needs {self.ndim} positive values, one for each axis of patch_size")
        return self

    @model_validator(mode="after")
    def _window_is_open(self) -> DataConfig:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window {list(self.window)} must be a low and a higher intensity")
        return self

    @model_validator(mode="after")
    def _label_values_are_distinct(self) -> DataConfig:
        values = list(self.label_values)
        if len(set(values)) < len(values) or min(values) < 0 or max(values) > 65535:
            raise ValueError(f"label_values {values} must be distinct, and in 0..65535")
        if self.ignore_value in values:
            left = [value for value in values if value != self.ignore_value]
            raise ValueError(
                f"label_values {values} holds the ignore_value {self.ignore_value}. To leave these voxels out, set "
                f"data.label_values={left}, background first"
            )
        return self


class SplitConfig(Section):
    """Which cases are labeled, unlabeled, validation and test."""

    file: str | None = None
    """A split written by `ssl-seg split make`; made from the seed when unset."""
    labels: LabelAmount = 1.0
    """Labeled share of the training pool (0..1], or a number of cases above 1; 1.0 is all."""
    seed: Seed = 0
    """Seed of the split, apart from the seed of the training: several trainings can share one split."""
    label_seed: Seed | None = None
    """Seed that chooses the labeled training cases; validation and test stay as they are. null: the split's order."""
    val_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the labeled cases kept for validation; null: the cases in val/ if there is train/ too, else 0.15."""
    test_fraction: float | None = Field(None, ge=0, lt=1)
    """Share of the labeled cases sealed for the final test; null: the cases in test/, or none, if there is train/ with
    val/ or test/, else 0.20."""
    folds: int | None = Field(None, ge=2)
    """Number of cross-validation folds; each fold is the validation set once, and val_fraction is not used."""
    fold: int = Field(0, ge=0)
    """The fold that is the validation set, from 0."""
    near_copies: Literal["keep_together", "ignore"] = "keep_together"
    """Images that are nearly the same (resized, compressed, brightened, turned) stay in one part of a new split and are
    a fault across parts; ignore: they are split like others, with a warning. Exact copies always stay together."""
    allow_faults: bool = False
    """Train even though the split check finds a fault; set by --allow-split."""

    @model_validator(mode="after")
    def _fold_exists(self) -> SplitConfig:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold} does not exist: there are {self.folds or 'no'} folds, counted from 0")
        if self.folds is not None and self.file is not None:
            raise ValueError(f"file {self.file} is one split; folds makes others: give one of them")
        return self


class BatchConfig(Section):
    """Composition of a batch, on each process."""

    labeled: PositiveInt
    """Labeled patches."""
    unlabeled: int = Field(ge=0)
    """Unlabeled patches; 0 for a purely supervised run."""
    positive_ratio: Share | None = None
    """Share of labeled patches from cases with foreground; null draws all labeled cases equally often."""
    foreground_share: float | None = Field(None, gt=0, lt=1)
    """Share of foreground in the labeled voxels of each batch, as closely as boxes in the drawn cases reach it; null
    leaves it to data.foreground_ratio."""


class AugmentConfig(Section):
    """What is done to training patches; image, target, weak and strong view of a patch share one geometry.

    Labeled patches and strong views of unlabeled ones get intensity changes too, weak views do not. A file or --set may
    give ``augment.preset``: none, light (mirrors, quarter turns, small changes of intensity) or strong (the defaults
    here). It sets all of these settings but cutmix and copy_paste; strong leaves invert to the plan. Single settings
    given beside it win.
    """

    flips: bool = True
    """Mirror along random axes."""
    rotate90: bool = True
    """Rotate by multiples of 90 degrees in the (Y, X) plane; of 180 where patches or voxels are not square."""
    affine: Share = 0.2
    """Probability that a patch is rotated, and that it is scaled; each is drawn on its own."""
    rotation: float = Field(180.0, ge=0, le=180)
    """Largest rotation in degrees in the (Y, X) plane; angles are those of the sample, whatever its voxel size."""
    tilt: float = Field(30.0, ge=0, le=180)
    """Largest rotation in degrees of volumes out of the (Y, X) plane; less where voxels are longer along Z."""
    scale: float = Field(0.4, ge=0, lt=1)
    """Enlarge or shrink by a factor of up to 1 + scale."""
    elastic: Share = 0.0
    """Probability of an elastic deformation."""
    intensity: Share = 0.5
    """Strength of noise, blur, brightness, contrast, low resolution and gamma; 0.5 is that of nnU-Net, 0 is none."""
    labeled_factor: float = Field(1.0, ge=0, le=10)
    """Factor on the probabilities of intensity changes in labeled patches; 1 gives those of nnU-Net."""
    strong_factor: float = Field(2.0, ge=0, le=10)
    """Factor on the probabilities of intensity changes in strong views of unlabeled patches."""
    invert: Share = 0.0
    """Probability that bright and dark are inverted in a labeled patch, and in each strong view."""
    cutout: Share = 0.3
    """Probability that boxes of a strong view are blanked."""
    cutmix: Share = 0.0
    """Probability that a strong view has a box of another one in it; its pseudo-label follows."""
    copy_paste: Share = 0.0
    """Probability that the foreground of another labeled patch is pasted into a labeled patch."""
