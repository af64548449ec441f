"""Signals and evidence made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ssl_seg.monitor.evidence import Evidence, Figures, Phase
from ssl_seg.monitor.findings import RuleFinding
from ssl_seg.monitor.signals import Signals

HEALTHY = Signals(
    voxels=10_000, patches=32, nonfinite=0, logit_mean=-0.5, logit_std=2.5, logit_quantiles=(0.0,) * 7,
    prob_mean=0.32, prob_std=0.3, prob_max=0.99, prob_histogram=(0.05,) * 20, share_below_01=0.4,
    prevalence_pred=0.31, prevalence_true=0.30, ratio_std=0.1, ratio_std_true=0.1,
    f1=0.7, precision=0.69, recall=0.71, f1_macro=0.7, f1_best=0.72, threshold_best=0.45, logit_best=-0.2,
    auroc=0.92, auroc_low=0.0, auroc_high=0.0,
    average_precision=0.8, trivial_f1=2 * 0.3 / 1.3, trivial_f1_macro=2 * 0.3 / 1.3, dice=0.7, foreground_distance=0.02,
)  # fmt: skip
"""As of so many cases that a ranking is known as it is: the ends of the interval of the AUROC doubt nothing."""
CONSTANT = replace(
    HEALTHY, logit_mean=0.53, logit_std=0.297, prob_mean=0.6267, prob_std=0.0689, prob_max=0.7071,
    prob_histogram=(0.0,) * 10 + (0.2, 0.2, 0.3, 0.28, 0.02) + (0.0,) * 5, prevalence_pred=1.0,
    f1=0.4615, f1_macro=0.4615, f1_best=0.4615, auroc=0.51,
)  # fmt: skip
"""The network of the first report: probabilities 0.6267+-0.0689, 95 % of them in 0.5 to 0.7."""
DEAD = replace(CONSTANT, logit_std=0.0, prob_std=0.0, auroc=0.5)
ALL_NEGATIVE = replace(
    HEALTHY, logit_mean=-1.443, prob_mean=0.192, prob_std=0.12, prob_max=0.52, prevalence_pred=534 / 314_966_016,
    f1=0.0, f1_macro=0.0, f1_best=0.48, auroc=0.55,
)  # fmt: skip
"""The network of the third report after its first epoch."""
ALL_POSITIVE = replace(CONSTANT, prob_std=0.2)
SHIFTED = replace(ALL_NEGATIVE, f1_best=0.68, auroc=0.88, threshold_best=0.21)
INVERTED = replace(HEALTHY, f1=0.1, f1_macro=0.1, f1_best=0.4615, auroc=0.12)
UNIFORM = replace(HEALTHY, f1=0.3, f1_best=0.48, auroc=0.55, ratio_std=0.0001)
UNLEARNED = replace(HEALTHY, f1=0.40, f1_best=0.465, auroc=0.5, prevalence_pred=0.2)
EMPTY = replace(
    HEALTHY, prevalence_true=0.0, prevalence_pred=0.0, prob_mean=0.001, prob_std=0.001, f1=1.0,
    f1_macro=1.0, f1_best=None, auroc=None, average_precision=None, trivial_f1=0.0, ratio_std=0.0, ratio_std_true=0.0,
)  # fmt: skip


def level(finding: RuleFinding | None) -> str:
    """Return the level of a finding; "-" for none."""
    return "-" if finding is None else finding.level


def make_logits(score: Tensor) -> Tensor:
    """Return two-class logits (N,2,*S) whose log-odds of foreground is ``score``."""
    return torch.stack([-score / 2, score / 2], dim=1)


def make_evidence(
    student: Signals = HEALTHY,
    teacher: Signals = HEALTHY,
    phase: Phase = "trained",
    *,
    train: Signals | None = None,
    trend: tuple[Figures, ...] = (),
    training: Figures | None = None,
    **others: Any,
) -> Evidence:
    """Return evidence of two networks; ``train`` is what the student does on the training probe."""
    steps = {"loss": 0.5, "steps": 50.0, "prevalence_true": 0.3, "prevalence_pred": 0.3, "batch_f1": 0.7}
    return Evidence(
        phase,
        {"student": student, "teacher": teacher},
        {} if train is None else {"student": train},
        training=steps | dict(training or {}),
        trend=trend,
        **others,
    )


def make_trend(epochs: int = 0, **series: list[float]) -> tuple[Figures, ...]:
    """Return the rows of step 0 and of ends of epochs of 100 steps: the first value of a series is that of step 0.

    Names are those of ``summarize``, with ``__`` for the slash; a NaN is left out.
    """
    count = max([epochs + 1, *(len(values) for values in series.values())])
    rows: list[Figures] = []
    for i in range(count):
        row: dict[str, float] = {"step": 100.0 * i, "ends_epoch": 1.0, "f1": 0.5, "trivial_f1": 2 * 0.3 / 1.3}
        told = {name.replace("__", "/"): values[i] for name, values in series.items() if i < len(values)}
        rows.append(row | {name: value for name, value in told.items() if not math.isnan(value)})
    return tuple(rows)
