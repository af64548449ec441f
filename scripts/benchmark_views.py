"""Milliseconds of loading per patch, for each preset of views: cut from memory, moved, intensities changed.

Labeled patches have one view and a target, unlabeled ones two views. Presets take turns, so that other load on the
machine hits all of them alike; the median over the rounds is shown.

    OMP_NUM_THREADS=1 python scripts/benchmark_views.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ssl_seg.config import AugmentConfig
from ssl_seg.config.presets import VIEWS, expand_views
from ssl_seg.data.loader import PatchSource
from ssl_seg.data.store import CaseStore, LoadedCase
from ssl_seg.data.views.transforms import measure_intensity

CASES = {
    "128 x 128, gray": (1, (256, 256), (128, 128)),
    "128 x 128, RGB": (3, (256, 256), (128, 128)),
    "32 x 64 x 64": (1, (64, 96, 96), (32, 64, 64)),
    "96 x 96 x 96": (1, (128, 160, 160), (96, 96, 96)),
}


class OneImage(CaseStore):
    """A store that holds one image for all ids."""

    def __init__(self, case: LoadedCase) -> None:
        self.case, self.channels = case, len(case.image[:])  # type: ignore[arg-type]

    def load(self, _: str) -> LoadedCase:
        """Return the image."""
        return self.case

    def find_spacing(self, _: str) -> None:
        """Return that voxels are cubes."""


def make_case(channels: int, shape: tuple[int, ...]) -> LoadedCase:
    """Return noise of 8 bits with a mask."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (channels, *shape)).astype(np.uint8)
    return LoadedCase(image, (image[0] > 200).astype(np.int16), (), measure_intensity(image))


def main() -> None:
    """Measure all presets on all patches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--patches", type=int, default=60, help="patches of a measurement")
    args = parser.parse_args()
    table = Table(title=f"ms a patch, {torch.get_num_threads()} threads")
    for column in ("patch", *(f"{name}, {kind}" for name in VIEWS for kind in ("labeled", "unlabeled"))):
        table.add_column(column)
    for title, (channels, shape, patch) in CASES.items():
        store = OneImage(make_case(channels, shape))
        plain = PatchSource(store, ("a",), ("a",), (1, 1), patch, 0.0)
        augments = [AugmentConfig(**expand_views({"preset": name})) for name in VIEWS]
        sources = [
            replace(plain, augment=augment, counts=counts) for augment in augments for counts in ((1, 0), (1, 1))
        ]
        times: list[list[float]] = [[] for _ in sources]
        for round_ in range(args.rounds + 1):
            for source, found in zip(sources, times, strict=True):
                count = args.patches // (4 if len(patch) == 3 else 1)
                start = time.perf_counter()
                for step in range(count):
                    source[round_ * count + step]
                found.append((time.perf_counter() - start) / count * 1000)
        medians = [statistics.median(found[1:]) for found in times]
        pairs = zip(medians[::2], medians[1::2], strict=True)
        table.add_row(title, *(f"{ms:.2f}" for first, both in pairs for ms in (first, both - first)))
        Console(width=140).print(f"{title} done")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
