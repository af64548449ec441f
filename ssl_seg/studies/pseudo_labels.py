"""Pseudo-labels for a round of self-training, and how reliable they are (ST++, Yang et al. 2022, arXiv:2106.05095).

The best network so far labels all unlabeled training cases. A case is the more reliable, the better the networks of
the same run after one and two thirds of its steps agree with it: mean over them of the mean IoU of the classes. The
better half is trained with. On validation cases, where there are masks, the same is measured, and compared with them.

Deviations: the labeling network is the one that validation has chosen, student or teacher, not the last one; every
round labels all cases anew and takes half of them, where the paper takes all in its second round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ssl_seg import __version__
from ssl_seg.config import BootstrapConfig
from ssl_seg.data.catalog import Track
from ssl_seg.data.formats.stored import AnyArray
from ssl_seg.data.open import open_data, open_store
from ssl_seg.data.pseudo_labels import PSEUDO_LABELS_FILE, SCHEMA
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.data.splits.split import Split
from ssl_seg.data.store import CaseStore
from ssl_seg.data.views.transforms import find_gaps
from ssl_seg.errors import DataError, RefusedError, RunDirError
from ssl_seg.files import append_jsonl, atomic_write, read_jsonl, write_json
from ssl_seg.inference.calibration import decide
from ssl_seg.inference.decision import Decision
from ssl_seg.inference.ensemble import open_members
from ssl_seg.inference.sliding import Predictor
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint
from ssl_seg.run.bootstrap import check_finite, check_parent, choose_net
from ssl_seg.run.directory import RunDir
from ssl_seg.run.prepare import Tracker
from ssl_seg.scores.metrics import count_overlap

PROGRESS_FILE = "cases.jsonl"
"""A line for each case that has been labeled, while there are more to come."""
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Reliability:
    """How reliable pseudo-labels are; agreement and IoU are means over cases."""

    net: str
    """The network that made the labels."""
    kept: int
    """Cases that are trained with."""
    of: int
    """Cases that were labeled."""
    agreement: float
    """Agreement of earlier networks with the labels, on the cases that are kept."""
    agreement_of_rest: float | None
    """The same on the others; None where there is none."""
    foreground: float
    """Share of the voxels of the cases that are kept."""
    val_cases: int
    """Validation cases that were labeled in the same way, to compare them with their masks."""
    val_iou: float
    """IoU of their labels with these masks."""
    val_iou_of_half: float
    """IoU on the half of them that the networks agree on most."""
    val_correlation: float | None
    """Spearman's rank correlation of agreement and IoU over them; None where either is constant."""

    def __str__(self) -> str:
        rest = "" if self.agreement_of_rest is None else f", {self.agreement_of_rest:.3f} in the rest"
        ranks = "" if self.val_correlation is None else f", rank correlation with agreement {self.val_correlation:+.2f}"
        return (
            f"the {self.net} labels {self.of} cases and {self.kept} are kept: earlier networks agree "
            f"{self.agreement:.3f} (mean IoU){rest}; foreground {self.foreground:.1%}. On {self.val_cases} validation "
            f"cases, IoU with the masks {self.val_iou:.3f}, {self.val_iou_of_half:.3f} in the half that would be "
            f"kept{ranks}"
        )


@dataclass(frozen=True)
class Labeler:
    """The network that labels, and earlier ones of the same run, by whose agreement its labels are judged."""

    network: Predictor
    earlier: tuple[Predictor, ...]
    num_classes: int
    decision: Decision
    """How the classes of their probabilities are decided."""

    def label(self, image: NDArray[np.generic]) -> tuple[Labels, float]:
        """Return the class (*S) of each voxel of an image (C,*S), and the agreement on them, from 0 to 1."""
        labels = self.decision(self.network(image)).astype(np.int16)
        if (gaps := find_gaps(image)) is not None:
            labels[gaps] = IGNORE_INDEX
        found = [compute_mean_iou(self.decision(network(image)), labels, self.num_classes) for network in self.earlier]
        return labels, float(np.mean(found))


def compute_mean_iou(pred: Labels, target: Labels, num_classes: int) -> float:
    """Return the IoU of two labelings, mean over the classes (background too) that are in at least one of them."""
    counts = [count_overlap(pred, target, label) for label in range(num_classes)]
    present = [own.iou for own in counts if own.tp + own.fp + own.fn]
    return float(np.mean(present)) if present else 1.0


def make_pseudo_labels(
    run: RunDir, labels: float, folder: Path, options: BootstrapConfig, tracker: Tracker, *, force: bool = False
) -> Reliability:
    """Label the unlabeled training cases of a run with its network; go on where a former call was killed.

    Args:
        run: a run that has kept networks on the way (``length.snapshots``).
        labels: amount of labels, which says which training cases count as unlabeled.
        folder: for the files; see ``ssl_seg.data.pseudo_labels``.
        options: which network labels, and the gate that it must pass.
        tracker: shows the progress.
        force: use the network although it does not pass the gate.

    Raises:
        RefusedError: for a network that does not pass the gate.
        RunDirError: for a run that has kept no networks on the way, or a damaged file.
    """
    path = folder / PSEUDO_LABELS_FILE
    if path.is_file():
        return _load_reliability(path)
    checkpoint = load_checkpoint(run.best)
    net = choose_net(checkpoint, options)
    split = _pass_gate(checkpoint, run, options, force=force)
    earlier = run.find_snapshots()
    if not earlier:
        raise RunDirError(
            f"{run.path} has kept no networks on the way, by which pseudo-labels could be judged: it ended before a "
            "third of length.steps"
        )
    members = open_members([run.best, *earlier], net)
    data = members[0].config.data
    factor = members[0].window_factor  # for all: networks are compared here, not windows
    first, *others = (replace(model.predictor(net, factor=factor), resample_to=None) for model in members)
    labeler = Labeler(first, tuple(others), data.num_classes, decide(None, None, members[0].config.prediction))
    store = open_store(open_data(data.model_dump(mode="json"), tracker("reading cases")), data)
    folder.mkdir(exist_ok=True)
    rows = _label_cases(labeler, store, split.pool_ids(labels), folder, tracker("making pseudo-labels"))
    val = tracker("comparing them with validation masks")(split.val, len(split.val))
    masks = [_compare_with_mask(labeler, store, case_id) for case_id in val]
    found = summarize(rows, masks, net)
    values = {
        "schema": SCHEMA,
        "version": __version__,
        "network": {"checkpoint": str(run.best), "net": net, "step": checkpoint.progress.step},
        "earlier": [str(path) for path in earlier],
        "reliability": asdict(found),
        "label_values": store.catalog.label_values,
        "seen_labels": checkpoint.seen_labels,
        "cases": rows,
    }
    write_json(path, values)
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    return found


def _load_reliability(path: Path) -> Reliability:
    try:
        return Reliability(**json.loads(path.read_text(encoding="utf-8"))["reliability"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirError(f"{path} is damaged: {error}. Delete it to make the pseudo-labels again") from error


def _pass_gate(checkpoint: Checkpoint, run: RunDir, options: BootstrapConfig, *, force: bool) -> Split:
    """Return the split of a run whose network may label: it must pass what a network to start from must pass.

    Raises:
        RefusedError: with the reasons.
    """
    check_finite(checkpoint, str(run.best), options)
    split = split_from_dict(checkpoint.split)
    reasons = check_parent(checkpoint, split, options)
    if reasons and not force:
        raise RefusedError(
            f"{run.best} is refused as a source of pseudo-labels:\n" + "\n".join(f"- {r}" for r in reasons)
        )
    return split


def _label_cases(
    labeler: Labeler, store: CaseStore, case_ids: Sequence[str], folder: Path, track: Track
) -> list[dict[str, Any]]:
    """Write the labels of all cases that have none yet; return a row for each case, the most reliable half marked."""
    progress = folder / PROGRESS_FILE
    done = {row["id"]: row for row in read_jsonl(progress)}
    for number, case_id in enumerate(track(case_ids, len(case_ids))):
        if case_id in done:
            continue
        labels, agreement = labeler.label(_read_image(store, case_id))
        file = f"{number}.npy"
        with atomic_write(folder / file) as temporary, temporary.open("wb") as opened:
            np.save(opened, labels)
        voxels = [int((labels == label).sum()) for label in range(labeler.num_classes)]
        done[case_id] = {"id": case_id, "file": file, "agreement": agreement, "voxels": voxels}
        append_jsonl(progress, done[case_id])
    reliable = choose_reliable({case_id: done[case_id]["agreement"] for case_id in case_ids})
    return [{**done[case_id], "kept": case_id in reliable} for case_id in case_ids]


def choose_reliable(agreement: Mapping[str, float]) -> frozenset[str]:
    """Return the half of the cases, rounded up, that the networks agree on most; of equal ones the first by name."""
    ranked = sorted(agreement, key=lambda case_id: (-agreement[case_id], case_id))
    return frozenset(ranked[: -(-len(ranked) // 2)])


def summarize(rows: Sequence[Mapping[str, Any]], masks: Sequence[tuple[float, float]], net: str) -> Reliability:
    """Return how reliable pseudo-labels are.

    Args:
        rows: records of all cases that have been labeled.
        masks: agreement, and IoU with the mask, of each validation case.
        net: the network that has labeled.
    """
    kept, left = ([row for row in rows if row["kept"] == wanted] for wanted in (True, False))
    agreement, right = zip(*masks, strict=True)
    better = choose_reliable({f"{n:09}": value for n, value in enumerate(agreement)})
    constant = len(set(agreement)) == 1 or len(set(right)) == 1
    return Reliability(
        net=net,
        kept=len(kept),
        of=len(rows),
        agreement=float(np.mean([row["agreement"] for row in kept])),
        agreement_of_rest=float(np.mean([row["agreement"] for row in left])) if left else None,
        foreground=_share_foreground(kept),
        val_cases=len(masks),
        val_iou=float(np.mean(right)),
        val_iou_of_half=float(np.mean([right[int(n)] for n in better])),
        val_correlation=None if constant else float(spearmanr(agreement, right).statistic),
    )


def _share_foreground(rows: Sequence[Mapping[str, Any]]) -> float:
    voxels = np.sum([row["voxels"] for row in rows], axis=0)
    return float(voxels[1:].sum() / max(voxels.sum(), 1))


def _compare_with_mask(labeler: Labeler, store: CaseStore, case_id: str) -> tuple[float, float]:
    """Return how far the networks agree on a case that has a mask, and the mean IoU of its labels with the mask."""
    labels, agreement = labeler.label(_read_image(store, case_id))
    target = store.load(case_id).target
    if target is None:
        raise DataError(f"validation case '{case_id}' has no mask")
    return agreement, compute_mean_iou(labels, _read_all(target, labels.shape), labeler.num_classes)


def _read_image(store: CaseStore, case_id: str) -> NDArray[np.generic]:
    """Return the image (C,*S) of a case on the grid that the network sees."""
    image = store.load(case_id).image
    return _read_all(image, image.shape[1:])


def _read_all(voxels: AnyArray, shape: Sequence[int]) -> NDArray[Any]:
    """Return all voxels of an array of the spatial shape (*S)."""
    box: tuple[Any, ...] = (..., *(slice(0, size) for size in shape))
    return np.asarray(voxels[box])
