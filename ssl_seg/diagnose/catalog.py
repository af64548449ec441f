"""Codes, limits and actions of a diagnosis: those of the monitor, and those that take predictions of whole images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ssl_seg.monitor import actions, catalog, verdicts
from ssl_seg.monitor.actions import Action, Context
from ssl_seg.monitor.catalog import Limit
from ssl_seg.monitor.findings import RuleFinding, Verdict

OF_IMAGES: dict[str, str] = {
    "equal_statistics": "the outputs of different images have the same mean and standard deviation",
    "coverage_hole": "a part of the images is never predicted",
}
"""What each code means that needs whole images."""
_FOLLOWS = {"uniform_ratio": ("equal_statistics",), "all_positive": ("coverage_hole",)}
CODES: dict[str, str] = {
    name: {**catalog.CODES, **OF_IMAGES}[name] for code in catalog.CODES for name in (code, *_FOLLOWS.get(code, ()))
}
"""All codes, in the order in which findings of one level are named."""

LIMITS: dict[str, Limit] = {
    **catalog.LIMITS,
    "equal_statistics": Limit(
        0.01, "spread over images of the mean, and of the standard deviation, of the probability",
        "reported: means 0.6267 to 0.6272, standard deviations 0.0681 to 0.0690, training and test alike",
    ),
    "coverage_hole": Limit(
        0.0, "share of the voxels that is foreground in no image of a shape",
        "reported ratios of 95.06 % and 71.19 % are (312/320)^2 and (216/256)^2: a border without predictions",
    ),
    "input_difference": Limit(
        1e-4, "largest difference between what training and prediction feed the network, relative to values above 1",
        "ours: one normalization in two orders of float32 operations agrees to 1e-6",
    ),
}  # fmt: skip

ACTIONS: Mapping[str, tuple[Action, ...]] = {
    **actions.ACTIONS,
    "equal_statistics": actions.ACTIONS["uniform_ratio"],
    "coverage_hole": (Action("predict with `ssl-seg predict`, whose windows cover every voxel"),),
}


def conclude(findings: Iterable[RuleFinding], context: Context, used: str | None = None) -> Verdict:
    """Return the verdict that findings make; see ``ssl_seg.monitor.verdicts.conclude``."""
    return verdicts.conclude(findings, context, used, codes=CODES, actions=ACTIONS)
