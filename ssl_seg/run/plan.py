"""Settings planned from the data, each with its reason. Whatever a file or an option gives is left alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssl_seg.config.layers import Layer, Nested, flatten, nest, show_value
from ssl_seg.config.schedules import WARMUP_STEPS, plan_warmup
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.contrast import count_contrasts, count_skews, looks_like_ct, measure_window
from ssl_seg.data.resample import compute_resampled_shape
from ssl_seg.data.synthetic import is_synthetic
from ssl_seg.engine.pace import ANY_STEPS
from ssl_seg.errors import NetworkError, counted
from ssl_seg.methods import METHODS
from ssl_seg.methods.base import Traits
from ssl_seg.networks.builders import check_patch_size, get_network_spec

PATCH_VOXELS = {(2, False): 128**2, (2, True): 256**2, (3, False): 32 * 64 * 64, (3, True): 96**3}
"""Voxels of a patch by (dimensions, GPU?): what two cores, or a small GPU, do in well under a second."""
BATCH = {(2, False): 4, (2, True): 8, (3, False): 2, (3, True): 2}
STEPS = {(2, False): 400, (2, True): 2000, (3, False): 800, (3, True): 4000}
ENCODER_UNET_LR, ENCODER_LR_FACTOR = 1e-3, 0.3
OBJECT_WEIGHTS = [1.0, 1.0, 3.0]
"""Weights of background, inside and boundary in the cross-entropy; measurements are in docs/instances.md."""
MULTIPLE = {2: 32, 3: 16}
HEADS = 2
"""Further outputs of a network for a method that learns from outputs at several scales."""
FEW_LABELED = 6
"""Up to this many labeled images, UniMatch is planned: with 4 it beat supervised training on two sets of images, with
more on none (docs/methods.md)."""
UNIMATCH_STEPS = 400
"""Fewest steps for that: it was measured with this many, and lost with 100."""
RARE_FOREGROUND = 0.15
"""Below this mean share a third of the labeled patches is centered on foreground (nnU-Net's 33 %); above it, that would
only teach the network a higher prevalence than there is."""

LENGTH_KEYS = ("length.steps", "optim.warmup_steps")

MIXED_CONTRAST, INVERTED = 0.25, 0.5
"""If foreground is bright in at least a quarter of the labeled images and dark in another quarter, or likely so in the
unlabeled ones, half of the patches are inverted; docs/defaults.md has what was measured."""

RARE_POSITIVES, BALANCED = 0.5, 0.5
"""If fewer than half of the labeled cases have foreground, half of the labeled patches come from those that have."""


@dataclass(frozen=True)
class Planned:
    """One planned setting."""

    key: str
    value: Any
    reason: str

    def format_line(self) -> str:
        """Return the setting as a line of the log."""
        return f"plan: {self.key} = {show_value(self.value)} ({self.reason})"


def plan_run(
    catalog: Catalog, labeled: Sequence[str], unlabeled: Sequence[str], given: Nested, *, gpu: bool
) -> list[Planned]:
    """Return the settings that ``given`` leaves open.

    Args:
        catalog: the data, read once.
        labeled: ids of the labeled training cases; no other mask takes part in the plan, only the set of label values.
        unlabeled: ids of the training cases that are learned from without their masks.
        given: nested settings from files and options; they take part in the plan but are not planned.
        gpu: whether the run will be on one.
    """
    known, has_unlabeled = dict(flatten(given)), bool(unlabeled)
    shapes = _network_shapes(catalog, known)
    median = [round(float(n)) for n in np.median(np.array(shapes), axis=0)]
    ndim = catalog.ndim
    device = "GPU" if gpu else "CPU"
    steps = int(known.get("length.steps", STEPS[ndim, gpu]))
    method, planned_method = _plan_method(catalog, labeled, known, steps, has_unlabeled=has_unlabeled)
    network, planned_network = _plan_network(ndim, known, method, gpu=gpu)
    planned = [
        *_plan_masks(catalog),
        *_plan_objects(catalog, known),
        Planned("data.channels", catalog.channels, "channels of the images"),
        *_plan_axes(catalog),
        *_plan_layout(catalog),
        *_plan_nodata(catalog),
        *_plan_window(catalog, labeled, known),
        Planned(
            "data.patch_size",
            _fit_network(plan_patch_size(median, gpu=gpu), network),
            f"median image {_times(median)}, at most {PATCH_VOXELS[ndim, gpu]} voxels on a {device}",
        ),
        _plan_foreground_ratio(catalog, labeled),
        _plan_positive_ratio(catalog, labeled),
        *_plan_invert(catalog, labeled, unlabeled, known),
        *planned_method,
        *planned_network,
        *_plan_encoder_unet(network, known),
        *_plan_heads(network, method),
        Planned("batch.labeled", BATCH[ndim, gpu], f"{ndim}D on a {device}"),
        *_plan_unlabeled(known, method, BATCH[ndim, gpu], has_unlabeled=has_unlabeled),
        Planned("length.steps", steps, f"{device} default; --steps changes it"),
        Planned("optim.warmup_steps", plan_warmup(steps), f"{WARMUP_STEPS}, or a tenth of a shorter run"),
    ]
    return [p for p in planned if p.key not in known]


def replan_length(planned: Sequence[Planned], steps: int, reason: str) -> list[Planned]:
    """Return the plan with another length, and the warm-up, if that is planned, which goes with it."""
    kept = [p for p in planned if p.key not in LENGTH_KEYS]
    warmup = [replace(p, value=plan_warmup(steps)) for p in planned if p.key == "optim.warmup_steps"]
    return [*kept, Planned("length.steps", steps, reason), *warmup]


def plan_layers(planned: Sequence[Planned]) -> list[Layer]:
    """Return the plan as the lowest layers of a configuration."""
    return [Layer("plan", nest(item.key, item.value)) for item in planned]


def plan_patch_size(median: Sequence[int], *, gpu: bool) -> list[int]:
    """Return the largest near-cubic patch within the median image and the voxel budget, in multiples of 32 (3D: 16)."""
    ndim = len(median)
    multiple, budget = MULTIPLE[ndim], PATCH_VOXELS[ndim, gpu]
    size = [max(n // multiple, 1) * multiple for n in median]
    while math.prod(size) > budget:
        largest = max(range(ndim), key=lambda axis: size[axis])
        size[largest] -= multiple
    return size


def _fit_network(size: list[int], network: str) -> list[int]:
    """Return a patch that the network takes: enlarged to its multiples, and along X where one voxel would be left."""
    divisor = get_network_spec(network).divisor(tuple(size))
    size = [-(-n // d) * d for n, d in zip(size, divisor, strict=True)]
    return [*size[:-1], 2 * size[-1]] if math.prod(size) <= math.prod(divisor) else size


def _plan_method(
    catalog: Catalog, labeled: Sequence[str], known: Nested, steps: int, *, has_unlabeled: bool
) -> tuple[str, list[Planned]]:
    """Return the name of the method, given or planned, and what is planned of it."""
    takes_unimatch = (
        catalog.ndim == 2
        and catalog.meaning.task == "semantic"
        and known.get("network.name", "encoder_unet") == "encoder_unet"
        and _fits_encoder_unet(known.get("data.patch_size"))
    )
    has_unlabeled = has_unlabeled and known.get("batch.unlabeled") != 0
    is_open = not any(key.split(".")[0] == "method" for key in known)
    is_measured = len(labeled) <= FEW_LABELED and UNIMATCH_STEPS <= steps < ANY_STEPS
    if not (is_open and takes_unimatch and has_unlabeled and is_measured):
        return known.get("method.name", "mean_teacher"), []
    images = counted(len(labeled), "labeled image")
    reason = f"{images}, up to {FEW_LABELED}: measured with 4, in runs of {UNIMATCH_STEPS} steps"
    return "unimatch", [Planned("method.name", "unimatch", reason)]


def _plan_network(ndim: int, known: Nested, method: str, *, gpu: bool) -> tuple[str, list[Planned]]:
    """Return the name of the network, given or planned, and what is planned of it."""
    if "network.name" in known:
        return known["network.name"], []
    measured = ndim == 2 or not gpu
    if _get_traits(method).needs_features:
        reason = f"{method} works on the features between its encoder and its decoder"
        return "encoder_unet", [Planned("network.name", "encoder_unet", reason)]
    if measured and _fits_encoder_unet(known.get("data.patch_size")):
        return "encoder_unet", [Planned("network.name", "encoder_unet", f"{ndim}D: its encoder knows photos already")]
    return "dynunet", [Planned("network.name", "dynunet", f"{ndim}D, strides fitted to the patch")]


def _fits_encoder_unet(size: Sequence[int] | None) -> bool:
    """Return whether that network takes a patch that is given; any planned one can be made to fit."""
    try:
        if size is not None:
            check_patch_size("encoder_unet", size)
    except NetworkError:
        return False
    return True


def _plan_encoder_unet(network: str, known: Nested) -> list[Planned]:
    """A published encoder learns slowly, so that it does not forget, and what is new around it fast."""
    if network != "encoder_unet":
        return []
    planned = [
        Planned("network.norm", "group", "of the decoder, measured for encoder_unet"),
        Planned("optim.lr", ENCODER_UNET_LR, "measured for encoder_unet"),
    ]
    if known.get("network.encoder_weights", "imagenet") != "none":
        reason = "the encoder starts from published weights"
        planned.append(Planned("optim.encoder_lr_factor", ENCODER_LR_FACTOR, reason))
    return planned


def _get_traits(method: str) -> Traits:
    """Return what a method needs; that of a name that is refused later is Mean Teacher's."""
    return METHODS.get(method, METHODS["mean_teacher"]).traits


def _plan_heads(network: str, method: str) -> list[Planned]:
    if not (_get_traits(method).needs_heads and get_network_spec(network).deep_supervision):
        return []
    return [Planned("network.deep_supervision", HEADS, f"{method} learns from outputs at several scales")]


def _plan_unlabeled(known: Nested, method: str, batch: int, *, has_unlabeled: bool) -> list[Planned]:
    """As many unlabeled patches as labeled ones, mixed where the method learns on mixtures and there are two."""
    traits = _get_traits(method)
    labeled = int(known.get("batch.labeled", batch))
    labeled = int(known.get("policies.random_batch_size.largest", labeled))
    if not traits.uses_unlabeled:
        count, reason = 0, f"{method}: none needed"
    elif has_unlabeled:
        count, reason = labeled, "as many as labeled"
    else:
        count, reason = 0, f"every training case is labeled: {method} learns what supervised does"
    planned = [Planned("batch.unlabeled", count, reason)]
    if traits.cutmix and known.get("batch.unlabeled", count) > 1:
        planned.append(Planned("augment.cutmix", traits.cutmix, f"{method} learns on mixed strong views"))
    return planned


def _plan_foreground_ratio(catalog: Catalog, labeled: Sequence[str]) -> Planned:
    shares = [catalog.facts[i].foreground or 0.0 for i in labeled if i in catalog.facts]
    mean = float(np.mean(shares)) if shares else 0.0
    rare = mean < RARE_FOREGROUND
    reason = f"foreground is {mean:.1%} of the labeled voxels: {'rare' if rare else 'random boxes hold enough of it'}"
    return Planned("data.foreground_ratio", 0.33 if rare else 0.0, reason)


def _network_shapes(catalog: Catalog, known: Nested) -> list[tuple[int, ...]]:
    """Return the sizes of all images on the grid that the network sees."""
    wanted = known.get("data.resample_to")
    return [
        compute_resampled_shape(facts.shape, facts.spacing, wanted)
        if wanted and facts.spacing and len(wanted) == catalog.ndim
        else facts.shape
        for facts in catalog.facts.values()
    ]


def _plan_positive_ratio(catalog: Catalog, labeled: Sequence[str]) -> Planned:
    known = [catalog.facts[i] for i in labeled if i in catalog.facts]
    positive = sum((facts.foreground or 0.0) > 0 for facts in known)
    rare = 0 < positive < RARE_POSITIVES * len(known)
    reason = f"{positive} of {len(known)} labeled cases have foreground: {'balanced' if rare else 'drawn as they are'}"
    return Planned("batch.positive_ratio", BALANCED if rare else None, reason)


def _plan_invert(catalog: Catalog, labeled: Sequence[str], unlabeled: Sequence[str], known: Nested) -> list[Planned]:
    """Where foreground is bright in some images and dark in others, each can teach what the other shows."""
    if catalog.ndim != 2 or "augment.invert" in known or known.get("data.window") is not None:
        return []
    bright, dark = count_contrasts(catalog, labeled)
    if _is_mixed(bright, dark):
        reason = f"foreground is brighter than the rest in {bright} labeled images and darker in {dark}"
        return [Planned("augment.invert", INVERTED, reason)]
    if catalog.channels > 1:  # inverted colors are those of no other image; only where masks show it
        return []
    # If most labeled images, all of one kind, are skewed as their masks say, skewness tells the unlabeled ones apart.
    kind, own, other = ("brighter", 0, 1) if bright else ("darker", 1, 0)
    skewed, of_labeled = count_skews(catalog, unlabeled), count_skews(catalog, labeled)
    if (bright > 0) == (dark > 0) or of_labeled[own] < of_labeled[other] or not _is_mixed(*skewed):
        return []
    found = f"foreground is {kind} than the rest in {bright + dark} labeled images"
    reason = f"{found}, and likely not in {skewed[other]} unlabeled ones"
    return [Planned("augment.invert", INVERTED, reason)]


def _is_mixed(bright: int, dark: int) -> bool:
    return min(bright, dark) >= MIXED_CONTRAST * max(bright + dark, 1)


def _plan_axes(catalog: Catalog) -> list[Planned]:
    axes = catalog.reading.axes
    return [] if axes is None else [Planned("data.axes", axes, "only so the images have the size of their masks")]


def _plan_layout(catalog: Catalog) -> list[Planned]:
    if is_synthetic(catalog.root):
        return []
    planned = [Planned("data.layout", catalog.layout, "recognized")]
    if catalog.tiles > 1:
        planned.append(Planned("data.tiles", catalog.tiles, "fewer than three labeled images"))
    if catalog.ignore_value is not None:
        planned.append(Planned("data.ignore_value", catalog.ignore_value, f"declared by the {catalog.layout} layout"))
    return planned


def _plan_nodata(catalog: Catalog) -> list[Planned]:
    if catalog.reading.nodata is None:
        return []
    return [Planned("data.nodata", catalog.reading.nodata, "in many voxels, and far from all other values")]


def _plan_window(catalog: Catalog, labeled: Sequence[str], known: Nested) -> list[Planned]:
    """CT is clipped to its foreground: the statistics of a whole scan depend on how much air is in it."""
    if "data.window" in known or not looks_like_ct(catalog.facts.values()):
        return []
    window = measure_window(catalog, labeled)
    reason = "values like CT: 99 % of the labeled foreground is within; null normalizes each image by itself"
    return [] if window is None else [Planned("data.window", list(window), reason)]


def _plan_masks(catalog: Catalog) -> list[Planned]:
    meaning, masks = catalog.meaning, counted(len(catalog.labeled), "mask")
    if meaning.kind == "semantic":
        labels = Planned("data.label_values", list(catalog.label_values), f"values found in {masks}")
        return [Planned("data.mask", "semantic", "each value is a class"), labels]
    why = f"values of {masks} are {'numbers of objects' if meaning.kind == 'instances' else 'cut by a threshold'}"
    names = "background, inside and boundary of objects"
    reason = names if meaning.task == "instances" else "background and foreground in written masks"
    labels = Planned("data.label_values", list(catalog.label_values), reason)
    cut = [Planned("data.threshold", meaning.threshold, "half of the range")] if meaning.takes_fractions else []
    return [Planned("data.mask", meaning.kind, why), *cut, labels]


def _plan_objects(catalog: Catalog, known: Nested) -> list[Planned]:
    if catalog.meaning.task != "instances":
        return []
    reason = "objects: inside and boundary may be as good and hold them apart less well"
    planned = [Planned("monitor.select", "pq", reason)]
    if not any(key.startswith("loss.") for key in known):
        reason = "background, inside and boundary: the boundary is thin, and it holds objects apart"
        planned.append(Planned("loss.class_weights", OBJECT_WEIGHTS, reason))
    return planned


def _times(size: Sequence[int]) -> str:
    return "x".join(str(n) for n in size)
