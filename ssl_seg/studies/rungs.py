"""The rungs of a ladder of label fractions, how they compare, and which of them is used.

::

    LADDER/ladder.json   settings, results, and the checkpoint to use; written anew after each rung
    LADDER/split.yaml    the split of all rungs
    LADDER/rung1_0.01/   rung2_0.1/ ...     run directories
    LADDER/rung2_0.01_round1/               that of a round of self-training, and the masks that it learns from:
    LADDER/rung2_0.01_round1_pseudo_labels/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ssl_seg.config.data import check_label_amount, format_label_amount
from ssl_seg.errors import ConfigError
from ssl_seg.results.study import MemberStatus, Study, StudyKind
from ssl_seg.scores.intervals import Difference


@dataclass(frozen=True)
class Rung:
    """One training of the ladder. Scores are those of best.pt on the validation cases, empty without one."""

    number: int
    """Number of the rung, from 1."""
    labels: float
    """Share of the training pool, or a number of cases above 1."""
    cases: int
    """Number of labeled cases."""
    round: int = 0
    """Number of the round of self-training, from 1: a training from scratch that has pseudo-labels of the best rung so
    far, ``parent``, beside the labels. 0 is a training with labels alone."""
    status: MemberStatus = "waiting"
    parent: int | None = None
    """Number of the rung it started from, or whose pseudo-labels it has; None for a start from scratch."""
    net: str = ""
    """The better network of best.pt."""
    scores: dict[str, Any] = field(default_factory=dict)
    difference: Difference | None = None
    """Difference to the parent; None without one."""
    kept: bool = False
    """Whether it is better than all rungs below, so that the next one starts from it."""
    codes: tuple[str, ...] = ()
    """Codes of the last verdict's findings."""
    message: str = ""
    """Why it was refused: by the gate in front of it, or, where it has scores, by one of its own; or why skipped."""

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return f"rung{self.number}_{self.labels:g}" + (f"_round{self.round}" if self.round else "")

    @property
    def pseudo_labels(self) -> str:
        """Name of the directory of its pseudo-labels."""
        return f"{self.name}_pseudo_labels"

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"rung {self.number} (labels {self.amount}" + (f", round {self.round})" if self.round else ")")

    @property
    def amount(self) -> str:
        """Its labels as a setting says them."""
        return format_label_amount(self.labels)


LabelLadder = Study[Rung]


def find_best(ladder: LabelLadder) -> Rung | None:
    """Return the rung that the next one starts from: the last one that was better than all below it."""
    return next((rung for rung in reversed(ladder.trainings) if rung.kept), None)


def find_end(ladder: LabelLadder) -> Rung | None:
    """Return the rung that ended the ladder, by a refusal or a collapse; None for other endings."""
    return next((rung for rung in reversed(ladder.trainings) if rung.status == ladder.ending), None)


def find_best_checkpoint(ladder: LabelLadder) -> Path | None:
    """Return the checkpoint to use, best.pt of the best rung; None while there is none."""
    return None if (best := find_best(ladder)) is None else ladder.run_of(best).best


def _dump(ladder: LabelLadder) -> dict[str, Any]:
    used = find_best_checkpoint(ladder)
    return {
        "checkpoint": None if used is None else used.relative_to(ladder.path).as_posix(),
        "rungs": [{"name": rung.name, **asdict(rung)} for rung in ladder.trainings],
    }


def _parse(_: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    rungs: list[dict[str, Any]] = values["rungs"]
    if (ending := values["ending"]) in ("collapsed", "refused") and ending not in [rung["status"] for rung in rungs]:
        raise ValueError(f"none of its rungs is {ending}")
    return rungs


LADDER = StudyKind(
    "ladder.json", "ladder", "rungs", "ssl-seg ladder", ("epochs", "minutes", "force"),
    TypeAdapter(LabelLadder), _dump, _parse,
)  # fmt: skip


def check_labels(labels: Sequence[float]) -> None:
    """Check that these are the rungs of a ladder.

    Raises:
        ConfigError: for none, a value that is no amount of labels, or values that do not increase (all, 1.0, last).
    """
    if not labels:
        raise ConfigError("--labels: give the label fractions of the rungs, for example --labels 0.01 0.10 1.0")
    shown = " ".join(map(str, labels))
    try:
        amounts = [check_label_amount(amount) for amount in labels]
    except ValueError as error:
        raise ConfigError(f"--labels {shown}: {error}") from None
    ordered = sorted(set(amounts), key=lambda amount: (amount == 1, amount))
    if amounts != ordered:
        raise ConfigError(
            f"--labels {shown}: each rung needs more labels than the one below; "
            f"give --labels {' '.join(map(format_label_amount, ordered))}"
        )
