"""What a diagnosis found: verdict, findings, likely causes and the figures behind them.

No torch here: reports read these types.

Shapes: ``*S`` spatial = (Z, Y, X) or (Y, X). Shares and probabilities are in [0, 1], logits are log-odds of foreground.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_seg.files import to_finite
from ssl_seg.monitor.findings import Level, RuleFinding

Part = Literal["train", "val", "test", "new"]
"""``train`` and ``val`` have masks that were used; of ``test`` and ``new`` only the outputs are looked at, except that
the files of a folder of predictions are all ``new``, with or without masks."""


@dataclass(frozen=True)
class Conclusion:
    """The verdict in one line. ``code`` is that of the finding that decided, ``healthy`` where nothing was found."""

    level: Level
    code: str
    message: str


@dataclass(frozen=True)
class Cause:
    """A likely cause, the measured figures that speak for it, what to do about it, and the command that tests it."""

    text: str
    evidence: Sequence[str]
    action: str
    command: str


@dataclass(frozen=True)
class Moments:
    """Mean, standard deviation and range over the voxels of an image."""

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class ImageFigures:
    """The prediction of one image."""

    id: str
    part: Part
    shape: tuple[int, ...]
    """(*S)."""
    prob: Moments
    """Foreground probability; of masks their values, 0 and 1."""
    logit: Moments | None
    """None for a folder of predictions."""
    ratio_pred: float
    """Share of voxels predicted foreground, as `ssl-seg predict` does; with a mask, of those not ignored."""
    ratio_true: float | None
    """None without a mask."""
    f1: float | None


@dataclass(frozen=True)
class Histogram:
    """``counts`` (B) of voxels between ``edges`` (B + 1); split by truth over the voxels that have one."""

    name: Literal["prob", "logit"]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    foreground: tuple[int, ...]
    """Counts (B) of truly foreground voxels; all 0 without masks."""
    background: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One image to be shown, always 2D: of a volume the slice with the most true, else predicted, foreground."""

    id: str
    part: Part
    image: NDArray[np.float32] | None
    """(Y, X) or (Y, X, 3) in [0, 1]; None where only predictions were given."""
    truth: NDArray[np.integer] | None
    """(Y, X) class indices, negative where nothing is known."""
    prob: NDArray[np.float32] | None
    """(Y, X); None where masks were given."""
    pred: NDArray[np.bool_] | NDArray[np.integer]
    """(Y, X): foreground, or class indices."""
    f1: float | None = None
    """F1 of the whole image; None without a true mask."""


@dataclass(frozen=True)
class Diagnosis:
    """All that a diagnosis found.

    ``statistics`` holds plain nested types. What was not measured (no time left, no masks, no BatchNorm, ...) is left
    out; an undefined figure is ``None``. Keys of a checkpoint (c) and of predictions (p):

    - ``looked_at`` (c, p): ``{part: {"used": n, "of": m}}``, ``seconds_used``, ``seconds`` (the budget, c),
      ``skipped``: ``[stage names left out for want of time]``, ``read_as`` (p: how the files were read, in words),
      ``net`` (c: ``student`` or ``teacher``, the one examined), ``step`` (c).
    - ``outputs`` (c, p): ``{part: {"images", "voxels", "prob_mean", "prob_std", "prob_min", "prob_max", "logit_mean",
      "logit_std", "logit_min", "logit_max", "band_share" (share of outputs in 0.5-0.7), "low_share" (below 0.1),
      "prob_quantiles": {"0.01": ...}, "logit_quantiles": {...}}}`` and the same under ``all``. No logit keys in p.
    - ``shapes`` (c, p): a list of ``{"shape": [..], "images", "same" (images that share the most frequent ratio),
      "ratio" (that ratio), "ratio_min", "ratio_max", "true_known" (number of masks),
      "true_min", "true_max" (None without masks),
      "closed_form" (e.g. "(312/320) x (312/320)" or None), "never" (share of voxels predicted in no image),
      "always" (in every image), "hole": {"band": [[front, back], ..] per axis, "inside" (share of covered voxels
      predicted in most images)} or None}``.
    - ``equality`` (c, p with probabilities): ``{"mean_spread", "std_spread"`` (max - min over the images)``, "images",
      "train_mean", "train_std", "val_mean", "val_std"}``; the last four only where both parts were looked at (c).
    - ``threshold`` (c): probability above which foreground is predicted, of two classes.
    - ``nets`` (c): ``{"student" | "teacher" | "train_mode" | "untrained" | "train_probe": row}`` on the validation
      probe (``train_probe``: the examined net on labeled training patches); a row has ``f1, f1_best, threshold_best,
      auroc, average_precision, prob_mean, prob_std, prob_max, logit_mean, logit_std, prevalence_pred,
      prevalence_true, trivial_f1, dice``.
    - ``scores`` (c on validation images, p with masks): ``{"images", "f1", "iou", "precision", "recall", "accuracy",
      "f1_mean" (over images), "f1_mean_positives" (over those with foreground), "f1_mean_of_nothing"
      (what predicting nothing has over images), "bias" ("recall" | "precision" | "balanced")}`` of any foreground, and
      ``{"f1_macro", "trivial_f1_macro" (of predicting each class everywhere), "of" (what these two are of)}``.
    - ``trivial`` (c, p with masks): ``{"prevalence", "all_negative", "all_positive", "base_rate_random", "best",
      "margin" (f1 - best)}``.
    - ``sweep`` (c; p with masks and probabilities): ``{"thresholds": [0.001, ..., 0.999], "f1": [...],
      "best_threshold", "best_f1", "f1_at_half", "threshold" (that in force), "f1_at_threshold"}`` of the examined net
      on whole validation images.
    - ``foreground`` (c, p): ``{"pred": {"images", "mean", "median", "sd", "min", "max", "counts" (images in 20
      equal bins)}, "true": the same or None, "overestimate" (mean pred - mean true, in percentage points) or None}``
      over the images with masks; over all images where there are no masks.
    - ``trivial_losses`` (c): ``{"network": loss, "all_positive": loss, "all_negative": loss, "components": {name:
      {"weight", "network", "all_positive", "all_negative"}}}`` on the validation probe, with the weights of the last
      loss phase.
    - ``layers`` (c): ``{"zero_weights": [names of parameters], "non_finite_weights": [names], "silent": name}`` of the
      examined net; ``silent`` is the module from which on no output varies between voxels or patches, or None.
    - ``batches`` (c): ``{"n", "foreground": [share of each batch], "mean", "min", "max", "expected",
      "most_expected", "positive_patches", "notes": [text]}``.
    - ``inputs`` (c): ``{"images", "rank_correlation" (lowest), "path_difference" (largest |training - prediction|
      input), "clipped_low", "clipped_high" (largest share of voxels at the lowest / highest raw value),
      "constant": [ids]}``; a file with NaN is refused when it is read.
    - ``run`` (c in a run directory): ``{"directory", "steps", "last": {"step", "f1", "f1_title", "loss"},
      "verdicts": [{"step", "level", "codes"}], "actions": [{"step", "action"}], "status"}``.
    """

    subject: str
    """Path of the checkpoint or of the folder."""
    kind: Literal["checkpoint", "predictions"]
    verdict: Conclusion
    findings: tuple[RuleFinding, ...]
    """The one that leads first, then worst first."""
    causes: tuple[Cause, ...]
    """At most three, the most likely first; none where nothing that was measured speaks for one."""
    action: str
    """What to do about the finding that leads; empty where nothing was found."""
    next_command: str
    """What to run next; one line of shell."""
    statistics: Mapping[str, Any]
    images: tuple[ImageFigures, ...]
    histograms: tuple[Histogram, ...] = ()
    examples: tuple[Example, ...] = ()
    """At most four."""
    notes: tuple[str, ...] = field(default=())
    """What the reader should know about how it was measured."""

    def to_record(self) -> dict[str, Any]:
        """Return plain types for JSON: verdict, findings, statistics, causes, next command; no NaN, no infinity."""
        record: dict[str, Any] = to_finite(
            {
                "verdict": asdict(self.verdict),
                "findings": [asdict(f) for f in self.findings],
                "statistics": {**self.statistics, "images": [asdict(i) for i in self.images]},
                "causes": [asdict(c) for c in self.causes],
                "action": self.action,
                "next_command": self.next_command,
                "subject": self.subject,
                "notes": self.notes,
            }
        )
        return record
