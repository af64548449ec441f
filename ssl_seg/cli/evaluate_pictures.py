"""Pictures of scored cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_seg.data.catalog import pass_through
from ssl_seg.data.open import open_store
from ssl_seg.diagnose.examples import make_example
from ssl_seg.inference.calibration import calibrate_predictor, decide, find_calibration
from ssl_seg.inference.model import open_model
from ssl_seg.networks.precision import choose_device_if_given
from ssl_seg.report.example_figure import plot_examples
from ssl_seg.results.evaluation import EvaluateRequest, open_catalog_for


def draw_cases(request: EvaluateRequest, result: dict[str, Any], path: Path, count: int = 5) -> None:
    """Write a picture of ``count`` cases from the worst to the best Dice.

    Raises:
        DataError: when the picture exists or cannot be written.
    """
    model = open_model(request.checkpoint, choose_device_if_given(request.accelerator))
    catalog, data = open_catalog_for(request, model, pass_through)
    store = open_store(catalog, data)
    ranked = sorted(result["cases"], key=lambda row: float(row["dice"]))
    shown = min(count, len(ranked))
    chosen = [ranked[round(i * (len(ranked) - 1) / max(shown - 1, 1))] for i in range(shown)]
    calibration = find_calibration(model, result["which"]) if request.calibrated else None
    predictor = calibrate_predictor(model.predictor(result["which"], request.overlap), calibration)
    decision = decide(request.threshold, calibration, model.config.prediction)
    examples, titles = [], []
    for row in chosen:
        case = store.load_whole(row["id"])
        probs = predictor(case.image, case.spacing)
        title = f"{row['id']}\nDice {row['dice']:.3f}{_describe_classes(row, catalog.label_values[1:])}"
        titles.append(title)
        examples.append(make_example(row["id"], "val", case.image, case.target, 1 - probs[0], decision(probs)))
    errors = "found (green) missed (blue) false (red)" + "\nwrong class (yellow)" * (len(catalog.label_values) > 2)
    plot_examples(examples, path, titles, errors)


def _describe_classes(row: dict[str, Any], label_values: Sequence[int]) -> str:
    """Return the Dice of each class of a case that is there; of two classes only, that the mask is empty if it is."""
    if "classes" in row:
        known = zip(label_values, row["classes"], strict=True)
        each = [f"{value}: {dice:.3f}" for value, dice in known if dice is not None]
        return f", mean of its classes\n{', '.join(each)}" if each else ", nothing to find"
    return "" if row["prevalence"] else ", nothing to find"
