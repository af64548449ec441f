"""CPU time and memory of the search for images that look alike: where few are, and where all are.

Run ``python scripts/benchmark_likeness.py 1000 10000 100000``. Each figure is of a process of its own; memory is what
the search takes beside the thumbnails (4 KB an image).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import cv2
import numpy as np

from ssl_seg.data.duplicates import find_likeness

KINDS = {
    "texture": "different images",
    "camera": "different images under one strong light",
    "cameras": "the same, two cameras",
    "one": "one image with a little noise",
    "same": "one image, bit by bit",
}


def make_thumbnails(kind: str, count: int) -> dict[str, np.ndarray]:
    """Return textures of the kind; the last 20 images are turned copies of the first 20, with a little noise."""
    rng = np.random.default_rng(0)

    def texture() -> np.ndarray:
        return cv2.GaussianBlur(rng.normal(0, 1, (32, 32)).astype(np.float32), (0, 0), 1.5)

    lights = [20 * texture() for _ in range(2)]
    own = {"texture": 1.0, "camera": 1.0, "cameras": 1.0, "one": 0.02, "same": 0.0}[kind]
    light = {"texture": 0.0, "camera": 1.0, "cameras": 1.0, "one": 0.1, "same": 0.1}[kind]
    made = [own * texture() + light * lights[n % 2 if kind == "cameras" else 0] for n in range(count - 20)]
    made += [np.rot90(made[n], n).copy() + 0.02 * texture() * own for n in range(20)]
    return {f"{n:07d}": thumbnail for n, thumbnail in enumerate(made)}


def main() -> None:
    """Print a line for each kind and number of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--kind", choices=KINDS)
    args = parser.parse_args()
    if args.kind is None:
        for count in args.counts:
            for kind in KINDS:
                subprocess.run([sys.executable, __file__, str(count), "--kind", kind], check=True)
        return
    thumbnails = make_thumbnails(args.kind, args.counts[0])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = find_likeness(thumbnails)
    seconds, memory = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    planted = {tuple(sorted((f"{n:07d}", f"{args.counts[0] - 20 + n:07d}"))) for n in range(20)}
    hits = len(planted & {tuple(sorted(cluster)) for cluster in found.copies})
    print(
        f"{args.counts[0]:7d} {KINDS[args.kind]:40s} {seconds:6.1f} s {memory / 1024:6.0f} MB; "
        f"sets {len(found.copies)} (planted pairs {hits} of 20), crowds {len(found.crowds)}, pairs {len(found.pairs)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
