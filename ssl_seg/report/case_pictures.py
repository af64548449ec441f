"""Pictures of scored cases, from the worst to the best. Loads torch when it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_seg.data.pictures import spread
from ssl_seg.errors import DataError
from ssl_seg.report.example_figure import plot_examples

if TYPE_CHECKING:
    from ssl_seg.diagnose.result import Example
    from ssl_seg.results.evaluation import EvaluateRequest

_MOST_TOLD = 6
"""Classes whose Dice is in the title of a case."""

CaseRow = Mapping[str, Any]
"""The scores of a case, as ``evaluate`` has them."""


@dataclass(frozen=True)
class PredictedCase:
    """A scored case with its prediction: one plane of it, or of a volume those that were asked for."""

    title: str
    planes: Mapping[str, Example]
    """Name of the plane, empty for an image, -> what is shown."""


def draw_cases(request: EvaluateRequest, rows: Sequence[CaseRow], net: str, path: Path) -> None:
    """Write a picture of scored cases; see ``predict_cases``.

    Raises:
        DataError: when the picture exists or cannot be written.
    """
    cases = predict_cases(request, rows, net)
    examples = [example for case in cases for example in case.planes.values()]
    several = any("classes" in row for row in rows)
    errors = "found (green) missed (blue) false (red)" + "\nwrong class (yellow)" * several
    plot_examples(examples, path, [case.title for case in cases], errors)


def choose_spread(rows: Sequence[CaseRow], count: int) -> list[CaseRow]:
    """Return ``count`` cases, evenly spread from the worst to the best Dice."""
    return spread(sorted(rows, key=lambda row: float(row["dice"])), count)


def predict_cases(
    request: EvaluateRequest,
    rows: Sequence[CaseRow],
    net: str,
    *,
    all_planes: bool = False,
    contents: Mapping[str, str] | None = None,
) -> list[PredictedCase]:
    """Predict cases as ``evaluate`` does, with one of the networks.

    Args:
        request: checkpoint, data, and how they are read, calibrated and cut.
        rows: the scores of the cases.
        net: student or teacher.
        all_planes: draw one plane of a volume along each axis, and not only along z.
        contents: content of the cases by id when they were scored, where that was not just now.

    Raises:
        SslSegError: for an unusable checkpoint or folder, or a case whose image or mask has changed since.
    """
    from ssl_seg.data.catalog import pass_through
    from ssl_seg.data.open import open_store
    from ssl_seg.diagnose.examples import make_example
    from ssl_seg.inference.calibration import calibrate_predictor, decide, find_calibration
    from ssl_seg.inference.model import open_model
    from ssl_seg.networks.precision import choose_device_if_given
    from ssl_seg.results.evaluation import open_cases

    model = open_model(request.checkpoint, choose_device_if_given(request.accelerator))
    catalog, data = open_cases(model, pass_through, request.data, request.settings)
    known = {} if contents is None else {row["id"]: contents.get(row["id"]) for row in rows}
    for case_id, content in known.items():
        if case_id not in catalog.facts or catalog.facts[case_id].content != content:
            raise DataError(f"image or mask of '{case_id}' is not the one that was scored any more")
    store = open_store(catalog, data)
    calibration = find_calibration(model, net) if request.calibrated else None
    predictor = calibrate_predictor(model.predictor(net, request.overlap), calibration)
    decision = decide(request.threshold, calibration, model.config.prediction)
    names = ("z", "y", "x") if data.ndim == 3 and all_planes else ("",)
    found = []
    for row in rows:
        case = store.load_whole(row["id"])
        probs = predictor(case.image, case.spacing)
        pred, foreground = decision(probs), 1 - probs[0]
        planes = {
            f"across {name}" if name else "": make_example(
                row["id"], "val", case.image, case.target, foreground, pred, axis=axis
            )
            for axis, name in enumerate(names)
        }
        classes = _describe_classes(row, catalog.label_values[1:])
        found.append(PredictedCase(f"{row['id']}\nDice {row['dice']:.3f}{classes}", planes))
    return found


def _describe_classes(row: CaseRow, label_values: Sequence[int]) -> str:
    """Return the Dice of each class of a case that is there; of two classes only, that the mask is empty if it is."""
    if "classes" in row:
        known = zip(label_values, row["classes"], strict=True)
        each = [f"{value}: {dice:.3f}" for value, dice in known if dice is not None]
        each = [*each[:_MOST_TOLD], f"and {len(each) - _MOST_TOLD} more"] if len(each) > _MOST_TOLD else each
        return f", mean of its classes\n{', '.join(each)}" if each else ", nothing to find"
    return "" if row["prevalence"] else ", nothing to find"
