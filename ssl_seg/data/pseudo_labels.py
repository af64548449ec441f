"""Pseudo-labels of unlabeled training cases: their files, and a data set in which they stand in for masks.

::

    FOLDER/pseudo_labels.json    the cases and how reliable they are; written last
    FOLDER/NUMBER.npy            class index of each voxel, on the grid that the network sees

The user's data are not touched, and no case that has a mask in the catalog keeps it here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_seg.data.catalog import Catalog
from ssl_seg.data.splits.split import Split
from ssl_seg.errors import DataError, SplitError, counted, name_examples

PSEUDO_LABELS_FILE, SCHEMA = "pseudo_labels.json", 1


@dataclass(frozen=True)
class PseudoLabelSet:
    """Pseudo-labels that are trained with."""

    folder: Path
    files: Mapping[str, Path]
    """File of each case's pseudo-labels."""
    voxels: Mapping[str, tuple[int, ...]]
    """Voxels of each class, background first, by case."""
    label_values: tuple[int, ...]
    seen_labels: frozenset[str]
    """Contents of the images whose masks the network behind them has learned from; see ``Split.image_contents``."""

    def check(self, split: Split, unlabeled: tuple[str, ...], catalog: Catalog) -> None:
        """Check that they are of unlabeled training cases of a run.

        Raises:
            SplitError: for cases of another part, or a labeling network that has seen masks of validation or test.
            DataError: for other classes.
        """
        if self.label_values != catalog.label_values:
            raise DataError(
                f"data.pseudo_labels = {self.folder}: they have the label values {list(self.label_values)}, and the "
                f"data {list(catalog.label_values)}"
            )
        if strangers := sorted(self.files.keys() - set(unlabeled)):
            raise SplitError(
                f"data.pseudo_labels = {self.folder}: {counted(len(strangers), 'case', 'are')} not among the "
                f"unlabeled training cases of this run ({name_examples(strangers)}). Use the split and the labels "
                "that they were made with"
            )
        if seen := [i for i in (*split.val, *split.test) if split.image_contents([i]) & self.seen_labels]:
            raise SplitError(
                f"data.pseudo_labels = {self.folder}: the network that made them has learned from the masks of "
                f"{counted(len(seen), 'validation or test case')} of this run ({name_examples(seen)}). Use the split "
                "that they were made with"
            )

    def describe(self, catalog: Catalog) -> Catalog:
        """Return a catalog whose facts of these cases are those of the pseudo-labels, whatever masks there are."""
        facts = dict(catalog.facts)
        for case_id, voxels in self.voxels.items():
            share = sum(voxels[1:]) / max(sum(voxels), 1)
            facts[case_id] = replace(facts[case_id], values=self.label_values, counts=voxels, foreground=share)
        return replace(catalog, facts=facts)


def load_pseudo_labels(folder: Path) -> PseudoLabelSet:
    """Return the pseudo-labels in a folder that are to be trained with.

    Raises:
        DataError: for a folder without them, or with others than this version writes.
    """
    path = folder / PSEUDO_LABELS_FILE
    if not path.is_file():
        raise DataError(
            f"data.pseudo_labels = {folder}: there are no pseudo-labels, since it has no {PSEUDO_LABELS_FILE}. "
            "`ssl-seg train --rounds` makes them"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']}")
        kept = {row["id"]: row for row in values["cases"] if row["kept"]}
        return PseudoLabelSet(
            folder,
            {case_id: folder / row["file"] for case_id, row in kept.items()},
            {case_id: tuple(row["voxels"]) for case_id, row in kept.items()},
            tuple(values["label_values"]),
            frozenset(values["seen_labels"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
