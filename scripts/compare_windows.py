"""Finished trainings with windows of one patch and with longer ones: validation F1, mean Dice and CPU time of both.

    python scripts/compare_windows.py RUN [RUN ...]

Each RUN is the directory of a training; the network in use predicts its whole validation images, in turns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ssl_seg.data.open import open_data, open_store
from ssl_seg.inference.calibration import decide
from ssl_seg.inference.ensemble import score_cases
from ssl_seg.inference.model import open_model
from ssl_seg.inference.sliding import LONG, OVERLAP
from ssl_seg.run.directory import RunDir


def measure(run: RunDir) -> list[tuple[int, float, float, float]]:
    """Return factor, F1 (mean of classes), mean Dice and CPU seconds of both lengths of windows."""
    model = open_model(run.best)
    data = model.config.data
    store = open_store(open_data(data.model_dump(mode="json")), data)
    decision = decide(None, None, model.config.prediction)
    found = []
    for factor in (1, LONG):
        predictor, begun = model.predictor(model.better, OVERLAP, factor), time.process_time()
        (score,) = score_cases([predictor], store, model.checkpoint.split["val"], decisions=[decision])
        dice = score.summarize()["mean"]["dice"]
        found.append((factor, score.f1_macro, dice, time.process_time() - begun))
    return found


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    table = Table()
    for column in ("run", "F1, patches", "F1, longer", "Dice, patches", "Dice, longer", "CPU time"):
        table.add_column(column)
    for path in parser.parse_args().runs:
        (_, f1, dice, seconds), (_, long_f1, long_dice, long_seconds) = measure(RunDir(path))
        figures = (f"{f1:.4f}", f"{long_f1:.4f}", f"{dice:.4f}", f"{long_dice:.4f}", f"x {long_seconds / seconds:.2f}")
        table.add_row(path.name, *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
