"""The fault that no look at patches can see: predictions of whole images that leave a border out."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

from lab.injections import leave_border_out
from lab.runs import Nested, run_training, write_particles
from ssl_seg.diagnose.predictions import PredictionsRequest, diagnose_predictions
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.prediction import predict

WIDTH = 8
"""Voxels at each border that are not predicted; the images have 128x128."""


def audit_coverage(out: Path, steps: int = 60) -> dict[str, list[str]]:
    """Return what the audit of predictions says of a sound network, with and without the fault in its prediction."""
    data = write_particles(out / "data" / "particles")
    length: Nested = {"length": {"steps": steps, "steps_per_epoch": steps // 2}}
    run = run_training(out / "coverage", data, 0, length)
    found = {}
    for name, fault in (("as it is", nullcontext), ("a border of 8 voxels left out", lambda: leave_border_out(WIDTH))):
        folder = out / "coverage_predictions"
        shutil.rmtree(folder, ignore_errors=True)
        with fault():
            predict(PredictRequest(run.path / "checkpoints" / "best.pt", Path(data, "images"), folder, overlap=0.25))
        diagnosis = diagnose_predictions(PredictionsRequest(folder, Path(data, "masks")))
        found[name] = [f"{f.code} ({f.level}): {f.message}" for f in diagnosis.findings]
    return found
