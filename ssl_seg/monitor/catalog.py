"""What can be said of a network: the codes of findings and the limits of the rules, each in one table.

A code is a name for a fault, whoever sees it. Those that only a diagnosis of whole images sees are in its own catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ssl_seg.monitor.findings import Level, RuleFinding


@dataclass(frozen=True)
class Limit:
    """A number of a rule, and why it is that one."""

    value: float
    meaning: str
    source: str


CODES: dict[str, str] = {
    "non_finite": "outputs or loss are NaN or infinite",
    "zero_loss": "the labeled batches teach nothing: the loss is almost 0 too early, or they hold one class only",
    "blind_probe": "the validation patches hold one class only: nothing can be said of the networks",
    "mode_gap": "the student does well with the statistics of the batch and badly with its running ones",
    "loss_metric_divergence": "the training loss gets better, and the predictions do not",
    "inverted_output": "background is ranked above foreground",
    "constant_output": "the output hardly varies and does not follow the target",
    "uniform_ratio": "the same share of foreground is predicted in every image or patch, whatever it shows",
    "all_negative": "nothing is predicted although there is foreground, and no threshold would help",
    "all_positive": "everything is predicted although there is background, and no threshold would help",
    "component_explosion": "the loss or one of its components rises instead of falling",
    "teacher_diverged": "the teacher is clearly worse than the student is now, and than it was some time ago",
    "shifted_threshold": "the ranking is good, but the threshold is the wrong place to cut; no collapse",
    "not_above_trivial": "no threshold does clearly better than predicting foreground everywhere",
    "missing_class": "one of several foreground classes is hardly ever predicted, although it is there",
    "foreground_bias": "far more, or far less, foreground is predicted than there is",
    "trivial_loss": "the loss is stuck at the value of a constant output",
    "overfitting": "training cases get better while validation gets worse",
    "plateau": "validation has stopped getting better close to the trivial score",
    "pseudo_label_share": "the confidence threshold accepts almost none, or almost all, of the pseudo-labels",
    "pseudo_label_drift": "the pseudo-labels move away from the share of foreground in the masks",
}
"""What each code means, in the order in which findings of one level are named: what explains others leads."""

LIMITS: dict[str, Limit] = {
    "non_finite": Limit(0, "voxels with a non-finite output, or steps with a non-finite loss", "ours: none is sound"),
    "zero_loss": Limit(1e-4, "mean training loss that counts as 0", "a reported loss went 0.42, 0.00, 0.00"),
    "empty_batches": Limit(
        0.2, "steps without any foreground, times the true share of it, from which labeled batches count as empty; "
        "likewise for background",
        "ours, and at least 10 steps: 10 steps at 2 %, 200 at 0.1 %; where 5 % of the patches hold foreground, a tenth "
        "of each, 40 steps of 4 patches miss it once in 3,700 times",
    ),
    "blind_probe": Limit(
        0, "share of foreground, or of background, on which no network can be judged",
        "ours: a run on such a probe had an F1 of 0 throughout, and the verdict ok",
    ),
    "low_loss": Limit(
        0.1, "training loss that is too good to be true in the first 3 epochs, if it has halved and nothing is learned",
        "the report asks for a loss above 0.1 in the first epochs (0.45, 0.38, 0.32, 0.28)",
    ),
    "low_loss_prevalence": Limit(
        0.05, "true share of foreground below which a low loss is natural",
        "the entropy of 5 % is 0.20, twice the limit; of 1 %, 0.056",
    ),
    "mode_gap": Limit(
        0.10, "lead of train mode over eval mode in F1 at the best threshold, or in AUROC",
        "healthy networks with BatchNorm had at most 0.05 after 20 steps, 0.01 after 50, 0.17 untrained (measured)",
    ),
    "mode_gap_at_05": Limit(
        0.20, "the same for F1 at the threshold", "healthy: 0.13 after 20 steps, 0.04 after 50 (measured)"
    ),
    "loss_fall": Limit(0.10, "relative fall of the loss that counts", "a reported loss fell 0.27 to 0.22 (19 %)"),
    "f1_fall": Limit(0.10, "fall of F1 below the best so far", "reported together: F1 0.49 to 0.00"),
    "learned_margin": Limit(
        0.05, "margin of F1 at the best threshold over the trivial one from which something has been learned",
        "ours; healthy runs have 0.2 to 0.3 at the end of their first epoch (measured)",
    ),
    "batch_margin": Limit(
        0.15, "margin of F1 on training batches over the trivial one from which the network knows these cases",
        "learning runs have 0.18 to 0.23 after 20 and 30 steps (measured); a constant output has at most 0",
    ),
    "inverted_auroc": Limit(
        0.25, "AUROC at which background is ranked above foreground, if the probability varies",
        "chance is 0.5; untrained networks reached 0.31, one of 20 steps 0.35; with swapped labels, a wrong sign or "
        "inverted contrast it is 0.11 to 0.20 (measured)",
    ),
    "informative_auroc": Limit(
        0.60, "AUROC above which a ranking carries information, whatever the threshold, if the probability varies",
        "chance is 0.5; 50 steps on synthetic particles reach 0.7 (measured)",
    ),
    "informative_prob_std": Limit(
        0.10, "standard deviation of the probability that such a ranking needs",
        "networks that had collapsed kept an AUROC of 0.60 to 0.75 by the brightness of the image (measured)",
    ),
    "clear_auroc": Limit(
        0.75, "AUROC above which a ranking carries information also where the probability hardly varies",
        "healthy networks had 0.75 and more after 20 steps of warm-up (measured)",
    ),
    "one_sided_share": Limit(
        0.02, "predicting less than this share of the true foreground (or background, or of a class) is one-sided",
        "a reported collapse had 534 predicted voxels of 9.4e7 true ones; a fixed limit of 1 % gave false alarms on "
        "empty targets",
    ),
    "low_prob_mean": Limit(
        0.01, "mean probability that is all-negative where more than this share is true",
        "reported: pred_mean below 0.01 (0.000012 in a collapse); a later report compares with the target, since empty "
        "batches gave false alarms",
    ),
    "low_prob_share": Limit(
        0.99, "share of voxels with a probability below 0.1 that is mentioned", "reported: 99.43 % in a collapse",
    ),
    "dead_logit_std": Limit(
        1e-3, "standard deviation of the log-odds below which an output does not depend on the image at all",
        "ours; untrained networks have 0.5, with BatchNorm 0.005 in eval mode (measured)",
    ),
    "constant_prob_std": Limit(
        0.08, "standard deviation of the probability below which an output is constant",
        "reported constant networks had 0.068 to 0.070; a slow learner had 0.094 at AUROC 0.57 (measured on EMPS), one "
        "that separates has above 0.18",
    ),
    "kept_prob_std": Limit(
        0.8, "share of the largest spread so far; a constant output that keeps it is a warning in the first 5 epochs",
        "ours; networks that learn slowly start with a spread of 0.07 to 0.12 and keep it (measured on EMPS)",
    ),
    "band_share": Limit(
        0.95, "share of probabilities between 0.5 and 0.7 that is a constant output", "reported: more than 95 %",
    ),
    "patch_ratio_std": Limit(
        0.002, "spread of the predicted foreground share over patches below which it is the same in each",
        "networks with instance norm have 0.009 and more, trained or not (measured)",
    ),
    "patch_ratio_std_true": Limit(
        0.02, "spread of the true share over patches from which the predicted one should vary too",
        "synthetic data have 0.06 (sheets) and 0.14 (particles)",
    ),
    "uniform_patches": Limit(
        8, "patches, at least, in which one share of foreground is no coincidence",
        "ours: a sound recipe, looked at on 2 patches after 2 steps, had the same share in both",
    ),
    "uniform_ratio": Limit(
        0.90, "share of the images of one shape with the same foreground ratio to 1e-4, of at least 3",
        "reported: 45 of 45 images of 320x320, 5 of 5 of 256x256",
    ),
    "trivial_margin": Limit(0.01, "F1 over the best trivial predictor below which nothing has been learned", "ours"),
    "auroc_gain": Limit(
        0.04, "gain of AUROC since half of the steps that shows a student on its way, in the first 5 epochs",
        "healthy runs at the end of an epoch of 20 steps gained 0.05 to 0.11 (measured)",
    ),
    "shift_gap": Limit(0.10, "gain of F1 at the best threshold from which the threshold is called shifted", "ours"),
    "foreground_bias": Limit(
        2.0, "factor between predicted and true foreground from which it is named",
        "ours: from there on, F1 cannot exceed 2/(1 + 2) = 0.67",
    ),
    "teacher_gap": Limit(
        0.05, "lead of the student over the teacher in F1 at the best threshold, now and after half of the steps",
        "at most 0.02 in healthy runs, epochs of 50 steps (measured)",
    ),
    "teacher_gap_at_05": Limit(0.12, "the same at the threshold", "at most 0.06 in healthy runs (measured)"),
    "large_loss": Limit(1.0, "loss above which it has exploded, if it started lower", "reported"),
    "large_focal": Limit(0.25, "focal loss above which it has exploded, if it started lower", "reported"),
    "first_rise": Limit(1.1, "factor over its first value from which a loss has risen", "ours; that is of one step"),
    "collapsed_rise": Limit(3.0, "factor over the first value from which a risen loss is a collapse", "ours"),
    "component_rise": Limit(
        0.20, "rise of a component over its lowest epoch, relative (and 0.03), for 3 epochs in a row",
        "reported: focal 0.181 to 0.247 (37 %) over six epochs, 25 % in the fourth if it rose evenly",
    ),
    "loss_rise": Limit(
        0.03, "rise of the whole loss over its lowest epoch up to which a component may rise",
        "reported: 5.5 % in a run that diverged; 1.8 % in one that was fine although focal tripled",
    ),
    "validation_rise": Limit(
        0.02, "rise of the loss on validation over 3 epochs that all rise, together with a component",
        "reported: 2.8 % in the third epoch of a divergence, if it rose evenly; a run that was fine wavered by 1.8 %",
    ),
    "validation_component_rise": Limit(
        0.15, "rise of that component in the same epochs",
        "reported: focal by 18 % in the third epoch, if it rose evenly (0.181 to 0.247 in six)",
    ),
    "trivial_loss": Limit(
        0.06, "way from the best constant output to a perfect one that some component must come in 3 epochs",
        "reported as stuck: dice 0.48 to 0.50 and variance 0.95 to 1.00, 4 and 5 % of the way; the best run came 9 %",
    ),
    "score_drop": Limit(0.02, "fall of F1 below the best that is a step back", "ours; healthy epochs differ by 0.01"),
    "train_gap": Limit(
        0.15, "gap of F1, training probe minus validation, from which a run overfits, if validation falls for 3 epochs",
        "a report grades: below 0.10 learning, 0.19 overfitting starts, above 0.25 severe",
    ),
    "severe_train_gap": Limit(0.25, "gap that is called severe", "reported: 0.285 severe"),
    "severe_drop": Limit(
        0.05, "fall of F1 below the best that is enough in one epoch, if the gap is severe",
        "reported as degrading: 0.517 after 0.569, gap 0.27",
    ),
    "plateau_gain": Limit(0.005, "gain of F1 that 5 epochs must bring", "ours"),
    "plateau_margin": Limit(
        0.10, "margin over the trivial F1, at the best threshold, up to which a plateau is stuck low", "ours",
    ),
    "accepted_low": Limit(0.001, "share of pseudo-labels below which a threshold counts as accepting none", "ours"),
    "accepted_high": Limit(0.999, "share of pseudo-labels above which a threshold counts as accepting all", "ours"),
    "pseudo_odds": Limit(
        3.0, "factor between the odds of foreground in pseudo-labels and in the masks",
        "ours; healthy runs that start all-positive are beyond it for some epochs, so it must also have doubled",
    ),
}  # fmt: skip


def limit(name: str) -> float:
    """Return the value of a limit."""
    return LIMITS[name].value


def beats_trivial(f1: float, trivial_f1: float) -> bool:
    """Return whether masks beat foreground everywhere on whole images, or none of these has foreground to tell by.

    Args:
        f1: of the masks; with several classes the mean over these.
        trivial_f1: the same of foreground everywhere.
    """
    return trivial_f1 == 0 or f1 - trivial_f1 >= limit("trivial_margin")


def make_finding(
    code: str,
    level: Level,
    net: str,
    value: float,
    limit_name: str,
    message: str,
    *,
    scaled: float | None = None,
    limits: Mapping[str, Limit] = LIMITS,
) -> RuleFinding:
    """Return a finding with the source of its limit.

    Args:
        code: a key of CODES.
        level: how bad it is.
        net: ``student``, ``teacher`` or ``training``.
        value: what was seen.
        limit_name: a key of ``limits``.
        message: what was seen, in words and numbers.
        scaled: the limit that the value was compared with, where that depends on the data too.
        limits: a table of limits.
    """
    own = limits[limit_name]
    return RuleFinding(code, level, net, value, own.value if scaled is None else scaled, own.source, message)
