"""Slices of labeled volumes as a data set of 2D images, those of one volume in one group.

    python scripts/slice_volumes.py VOLUMES OUT --first 13 --last 31 --step 6

The images of such a set are alike, and a training of four of them takes a minute or two: a real set on which methods
can be compared on a CPU.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.store import CaseStore
from ssl_seg.data.volumes import write_mask


def slice_volumes(volumes: str, out: Path, rows: range) -> int:
    """Write the given slices of each labeled volume, ``images/NAME_Z.png`` and masks of class indices; return how many.

    Args:
        volumes: folder of 8-bit or 16-bit volumes (Z, Y, X) of one channel.
        out: a new folder.
        rows: the slices; a volume of fewer has those that it has.
    """
    catalog, names = open_catalog(volumes), []
    store = CaseStore(catalog, channels=1, max_bytes=0)
    for case in catalog.labeled:
        whole = store.load_whole(case.id)
        if whole.target is None:
            continue
        for z in range(len(whole.target))[rows.start : rows.stop : rows.step]:
            names.append((f"{case.id}_{z:02d}", case.id))
            for kind, voxels in (("images", whole.image[0]), ("masks", whole.target)):
                (out / kind).mkdir(parents=True, exist_ok=True)
                write_mask(out / kind / f"{names[-1][0]}.png", voxels[z])
    with (out / "groups.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "group"), *names])
    return len(names)


def main() -> None:
    """Write a data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes")
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=2**31)
    parser.add_argument("--step", type=int, default=1)
    given = parser.parse_args()
    count = slice_volumes(given.volumes, given.out, range(given.first, given.last + 1, given.step))
    print(f"wrote {count} slices to {given.out}")


if __name__ == "__main__":
    main()
