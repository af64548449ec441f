"""Findings on the predictions of whole images, and the verdict on all findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ssl_seg.data.facts import format_size
from ssl_seg.diagnose.catalog import CODES, LIMITS
from ssl_seg.diagnose.result import Conclusion
from ssl_seg.diagnose.tally import Tally
from ssl_seg.monitor.catalog import beats_trivial, limit, make_finding
from ssl_seg.monitor.findings import Level, RuleFinding, Verdict
from ssl_seg.monitor.network_rules import find_trivial_images
from ssl_seg.scores.sameness import FEWEST, SAME, find_same

CONSTANT = ("constant_output", "uniform_ratio", "equal_statistics")
"""Codes of a network that does not look at its input."""
CONSTANT_MESSAGE = "constant output function: do not submit"
AXES = ("z", "y", "x")
CONSTANT_RANGE = 0.5
"""Range of the probability above which an output is not constant, whatever its spread; the reported one had 0.19."""
EMPTY_SHARE = 0.01
"""Mean probability below which (or as near to 1) an output says that nothing (or everything) is foreground."""


def audit_outputs(
    tally: Tally, statistics: Mapping[str, Any], net: str, auroc: float | None
) -> tuple[RuleFinding, ...]:
    """Return what is wrong with the predictions of all images together, worst first.

    Args:
        tally: tally of at least one image.
        statistics: with ``outputs``, ``shapes`` and ``equality``.
        net: whose predictions they are.
        auroc: over the voxels with a known truth, None without any. An output that ranks well is not constant.
    """
    outputs = statistics.get("outputs", {}).get("all")
    findings = [
        *_check_finite(tally, net),
        *_check_ratios(tally, statistics["shapes"], net, auroc),
        *_check_holes(statistics["shapes"], net),
    ]
    if outputs is not None:
        findings += _check_constant(outputs, net, auroc)
        findings += _check_equality(statistics["equality"], outputs, net, auroc)
    return (*findings, *_check_empty(tally, net))


def audit_inputs(statistics: Mapping[str, Any], net: str) -> tuple[RuleFinding, ...]:
    """Return a finding where prediction feeds the network other values than training does.

    It is a collapse where the predictions of whole images are no better than trivial.
    """
    difference = statistics.get("inputs", {}).get("path_difference")
    if difference is None or difference <= LIMITS["input_difference"].value:
        return ()
    message = f"inputs of training and prediction differ by up to {difference:.3g} standard deviations"
    level: Level = "warn"
    if "scores" in statistics:
        on_patches = statistics["nets"][net]["f1"]
        message += f"; F1 {on_patches:.3f} on patches as in training, {statistics['scores']['f1']:.3f} on whole images"
        if not beats_trivial(statistics["scores"]["f1_macro"], statistics["scores"]["trivial_f1_macro"]):
            level = "collapsed"
    return (make_finding("loss_metric_divergence", level, net, difference, "input_difference", message, limits=LIMITS),)


def audit_margin(statistics: Mapping[str, Any], net: str) -> tuple[RuleFinding, ...]:
    """Return a finding where the masks of whole images are no better than foreground everywhere."""
    if "scores" not in statistics:
        return ()
    scores = statistics["scores"]
    found = find_trivial_images(scores["f1_macro"], scores["trivial_f1_macro"], net)
    return () if found is None else (found,)


def put_behind(verdict: Verdict, findings: Iterable[RuleFinding]) -> Verdict:
    """Return the verdict with further findings at the end, no worse than the first one.

    A verdict of ok stays ok: similar images may well have similar outputs.
    """
    if not verdict.findings:
        return verdict
    known = {f.code for f in verdict.findings}
    more = [f if verdict.level == "collapsed" else f.soften() for f in findings if f.code not in known]
    return replace(verdict, findings=(*verdict.findings, *more))


def describe_verdict(verdict: Verdict, healthy: str) -> Conclusion:
    """Return the verdict in one line; ``healthy`` is the message where nothing was found."""
    if not verdict.findings:
        return Conclusion("ok", "healthy", healthy)
    first = verdict.findings[0]
    if first.level != "collapsed":
        return Conclusion(first.level, first.code, f"{CODES[first.code]}: {first.message}")
    message = CONSTANT_MESSAGE if first.code in CONSTANT else f"{CODES[first.code]}: do not submit"
    return Conclusion("collapsed", first.code, message)


def ranks_voxels(auroc: float | None) -> bool:
    """Return whether a ranking of voxels is known to carry information."""
    return auroc is not None and auroc >= limit("informative_auroc")


def _check_finite(tally: Tally, net: str) -> Iterator[RuleFinding]:
    if tally.nonfinite:
        message = f"{tally.nonfinite} of {tally.voxels} outputs are NaN or infinite"
        yield make_finding("non_finite", "collapsed", net, tally.nonfinite, "non_finite", message)


def _check_ratios(
    tally: Tally, shapes: Sequence[Mapping[str, Any]], net: str, auroc: float | None
) -> Iterator[RuleFinding]:
    uniform = [row for row in shapes if _is_uniform(row["same"], row["images"], row["ratio"]) and _truth_varies(row)]
    level: Level = "warn" if ranks_voxels(auroc) else "collapsed"
    if uniform:
        parts = [_describe_ratio(row["same"], row["images"], row["ratio"], row["closed_form"],
                                 f" of {format_size(row['shape'])}") for row in uniform]  # fmt: skip
        share = sum(row["same"] for row in uniform) / sum(row["images"] for row in uniform)
        yield make_finding("uniform_ratio", level, net, share, "uniform_ratio", "; ".join(parts))
        return
    ratios, true = [i.ratio_pred for i in tally.images], [i.ratio_true for i in tally.images]
    same, ratio = find_same(ratios)
    known = [t for t in true if t is not None]
    varies = len(known) < FEWEST or max(known) - min(known) > SAME
    if _is_uniform(same, len(ratios), ratio) and varies:  # no shape alone has enough images
        message = _describe_ratio(same, len(ratios), ratio, None, " of several shapes")
        yield make_finding("uniform_ratio", level, net, same / len(ratios), "uniform_ratio", message)


def _is_uniform(same: int, images: int, ratio: float) -> bool:
    """Return whether images share a ratio; a tiny one, as of sparse lesions, may agree by chance."""
    return same >= FEWEST and same >= limit("uniform_ratio") * images and ratio >= EMPTY_SHARE


def _truth_varies(row: Mapping[str, Any]) -> bool:
    """Return whether the truth of images of one shape differs; taken for granted where it is known of a few only."""
    return bool(row["true_known"] < FEWEST or row["true_max"] - row["true_min"] > SAME)


def _describe_ratio(same: int, images: int, ratio: float, closed_form: str | None, of: str) -> str:
    number = f"all {images}" if same == images else f"{same} of {images}"
    product = "" if closed_form is None else f" = {closed_form}"
    return f"{number} images{of} predict exactly {ratio:.2%} foreground{product}"


def _check_holes(shapes: Sequence[Mapping[str, Any]], net: str) -> Iterator[RuleFinding]:
    rows = [row for row in shapes if row["hole"] is not None]
    if rows:
        parts = [f"{_describe_hole(row)} of {format_size(row['shape'])}" for row in rows]
        message = f"no prediction reaches {'; '.join(parts)}, though most reach the planes beside"
        share = max(row["hole"]["share"] for row in rows)
        yield make_finding("coverage_hole", "warn", net, share, "coverage_hole", message, limits=LIMITS)


def _describe_hole(row: Mapping[str, Any]) -> str:
    names = AXES[-len(row["shape"]) :]
    runs = [
        f"{name} {first}..{behind - 1}"
        for name, own in zip(names, row["hole"]["runs"], strict=True)
        for first, behind in own
    ]
    return ", ".join(runs)


def _check_constant(outputs: Mapping[str, Any], net: str, auroc: float | None) -> Iterator[RuleFinding]:
    if ranks_voxels(auroc):
        return
    mean, std, band = outputs["prob_mean"], outputs["prob_std"], outputs["band_share"]
    says_something = EMPTY_SHARE < mean < 1 - EMPTY_SHARE or auroc is not None
    spread = f"probability {mean:.4f}+-{std:.4f}, {outputs['prob_min']:.4f} to {outputs['prob_max']:.4f}"
    # Small bright objects on a dark ground have a small spread too, but not a small range.
    is_narrow = auroc is not None or outputs["prob_max"] - outputs["prob_min"] < CONSTANT_RANGE
    if std < limit("constant_prob_std") and says_something and is_narrow:
        message = f"the same everywhere: {spread}; {band:.1%} of the outputs lie in 0.5 to 0.7"
        yield make_finding("constant_output", "collapsed", net, std, "constant_prob_std", message)
    elif band > limit("band_share"):
        message = f"{band:.1%} of the outputs lie in 0.5 to 0.7: {spread}"
        yield make_finding("constant_output", "collapsed", net, band, "band_share", message)


def _check_equality(
    equality: Mapping[str, Any], outputs: Mapping[str, Any], net: str, auroc: float | None
) -> Iterator[RuleFinding]:
    spread = max(equality["mean_spread"], equality["std_spread"])
    if equality["images"] < FEWEST or ranks_voxels(auroc) or not spread < LIMITS["equal_statistics"].value:
        return
    if auroc is None and not EMPTY_SHARE < outputs["prob_mean"] < 1 - EMPTY_SHARE:
        return
    message = (
        f"mean and standard deviation of the output agree over {equality['images']} images to "
        f"{equality['mean_spread']:.4f} and {equality['std_spread']:.4f}"
    )
    if "train_mean" in equality:
        pairs = [f"{p} {equality[f'{p}_mean']:.4f}+-{equality[f'{p}_std']:.4f}" for p in ("train", "val")]
        message += f", training and validation images alike ({', '.join(pairs)})"
    # Images that are all alike, such as pieces of one material, have similar outputs: that alone is a warning.
    level: Level = "collapsed" if outputs["prob_std"] < limit("constant_prob_std") else "warn"
    yield make_finding("equal_statistics", level, net, spread, "equal_statistics", message, limits=LIMITS)


def _check_empty(tally: Tally, net: str) -> Iterator[RuleFinding]:
    """Report that nothing is predicted in any image. With masks, the rules on signals say so instead."""
    if any(i.ratio_true is not None for i in tally.images) or any(i.ratio_pred > 0 for i in tally.images):
        return
    message = f"no foreground in any of {len(tally.images)} images; whether there is any is not known without masks"
    yield make_finding("all_negative", "warn", net, 0.0, "one_sided_share", message)
