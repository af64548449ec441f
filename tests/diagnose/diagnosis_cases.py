"""Diagnoses made by hand: a constant network, a good one, and a folder of masks that are the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.diagnose.result import Cause, Conclusion, Diagnosis, Example, Histogram, ImageFigures, Moments
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.monitor.catalog import make_finding

SPREAD = {"mean": 0.6, "median": 0.61, "sd": 0.18, "min": 0.18, "max": 0.92, "counts": [0] * 12 + [5] + [0] * 7}
NET_ROW = {
    "f1": 0.494, "f1_best": 0.495, "threshold_best": 0.05, "auroc": 0.51, "average_precision": 0.33, "dice": 0.47,
    "prob_mean": 0.627, "prob_std": 0.069, "prob_max": 0.707, "logit_mean": 0.529, "logit_std": 0.297,
    "prevalence_pred": 1.0, "prevalence_true": 0.327, "trivial_f1": 0.493,
}  # fmt: skip
OUTPUT_ROW = {
    "images": 4, "voxels": 262144, "prob_mean": 0.627, "prob_std": 0.069, "prob_min": 0.5216, "prob_max": 0.7071,
    "logit_mean": 0.5287, "logit_std": 0.2971, "logit_min": 0.0863, "logit_max": 0.8813, "band_share": 0.971,
    "low_share": 0.0,
    "prob_quantiles": {"0.01": 0.52, "0.05": 0.53, "0.25": 0.6, "0.5": 0.63, "0.75": 0.66, "0.95": 0.7, "0.99": 0.705},
    "logit_quantiles": {"0.01": 0.1, "0.05": 0.12, "0.25": 0.4, "0.5": 0.53, "0.75": 0.7, "0.95": 0.86, "0.99": 0.88},
}  # fmt: skip


def disk(shape: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    """A disk in the middle."""
    y, x = np.indices(shape) - np.array(shape).reshape(2, 1, 1) / 2
    found: NDArray[np.bool_] = y**2 + x**2 < radius**2
    return found


def example(name: str = "case_0", shape: tuple[int, int] = (48, 64), **changes: Any) -> Example:
    """A disk that is found, but a little too large; a strip is ignored."""
    truth, pred = disk(shape, 12).astype(np.int64), disk(shape, 15)
    truth[:, -6:] = IGNORE_INDEX
    rng = np.random.default_rng(0)
    image = (0.3 + 0.4 * disk(shape, 12) + 0.05 * rng.standard_normal(shape)).clip(0, 1).astype(np.float32)
    values: dict[str, Any] = {
        "id": name, "part": "val", "image": image, "truth": truth,
        "prob": np.where(pred, 0.9, 0.1).astype(np.float32), "pred": pred, "f1": 0.812,
    }  # fmt: skip
    return Example(**(values | changes))


def image_figures(number: int, **changes: Any) -> ImageFigures:
    """An image whose foreground share follows the truth."""
    share = (number * 37 % 100) / 100
    values: dict[str, Any] = {
        "id": f"img_{number:03}", "part": "val", "shape": (256, 256), "prob": Moments(share, 0.3, 0.0, 1.0),
        "logit": Moments(-1.0, 2.5, -6.0, 5.5), "ratio_pred": min(1.0, share + 0.02), "ratio_true": share, "f1": 0.8,
    }  # fmt: skip
    return ImageFigures(**(values | changes))


def histograms(*, separated: bool) -> tuple[Histogram, ...]:
    """Foreground and background apart from each other, or the same."""
    edges = np.linspace(0, 1, 41)
    centers = (edges[1:] + edges[:-1]) / 2
    places = (0.9, 0.1) if separated else (0.62, 0.62)
    front, back = (np.round(1e5 * np.exp(-(((centers - place) / 0.05) ** 2))).astype(int).tolist() for place in places)
    counts = [a + b for a, b in zip(front, back, strict=True)]
    logit_edges = tuple((np.linspace(-6, 6, 41)).tolist())
    return (
        Histogram("prob", tuple(edges.tolist()), tuple(counts), tuple(front), tuple(back)),
        Histogram("logit", logit_edges, tuple(counts), tuple(front), tuple(back)),
    )


def constant_diagnosis(**changes: Any) -> Diagnosis:
    """The network of the first reported collapse, with every figure that a checkpoint can have."""
    finding = make_finding(
        "constant_output", "collapsed", "teacher", 0.069, "constant_prob_std",
        "the same everywhere: probability 0.627+-0.069, AUROC 0.51", scaled=0.1,
    )  # fmt: skip
    second = make_finding(
        "not_above_trivial", "warn", "teacher", 0.495, "trivial_margin",
        "best F1 at any threshold 0.50, all-positive scores 0.49", scaled=0.503,
    )  # fmt: skip
    thresholds = [round(0.05 * n, 2) for n in range(1, 20)]
    statistics: dict[str, Any] = {
        "looked_at": {"train": {"used": 2, "of": 2}, "val": {"used": 5, "of": 5}, "new": {"used": 3, "of": 40},
                      "seconds_used": 61.25, "seconds": 120.0, "skipped": ["inputs"], "net": "teacher", "step": 480},
        "outputs": {"train": OUTPUT_ROW, "val": OUTPUT_ROW, "all": OUTPUT_ROW | {"images": 8}},
        "shapes": [
            {"shape": [320, 320], "images": 45, "same": 45, "ratio": 0.950625, "ratio_min": 0.950625,
             "ratio_max": 0.950625, "true_min": 0.1, "true_max": 0.8, "closed_form": "(312/320) x (312/320)",
             "never": 0.049375, "always": 0.950625, "hole": {"band": [[4, 4], [4, 4]], "inside": 1.0, "share": 0.049}},
            {"shape": [256, 256], "images": 5, "same": 5, "ratio": 0.71191, "ratio_min": 0.71191, "ratio_max": 0.71191,
             "true_min": None, "true_max": None, "closed_form": None, "never": None, "always": None, "hole": None},
        ],
        "equality": {"mean_spread": 0.0005, "std_spread": 0.0009, "images": 3, "train_mean": 0.6267,
                     "train_std": 0.069, "val_mean": 0.6272, "val_std": 0.0689},
        "nets": dict.fromkeys(("student", "teacher", "train_mode", "untrained", "train_probe"), NET_ROW),
        "scores": {"images": 5, "f1": 0.494, "f1_macro": 0.494, "trivial_f1_macro": 0.493, "of": "foreground",
                   "iou": 0.328, "precision": 0.33, "recall": 0.99, "accuracy": 0.33, "f1_mean": 0.47,
                   "bias": "recall"},
        "trivial": {"prevalence": 0.327, "all_negative": 0.0, "all_positive": 0.493, "base_rate_random": 0.327,
                    "best": 0.493, "margin": 0.001},
        "sweep": {"thresholds": thresholds, "f1": [0.495] * 11 + [0.45, 0.3, 0.1] + [0.0] * 5, "best_threshold": 0.05,
                  "best_f1": 0.495, "f1_at_half": 0.494, "threshold": 0.5, "f1_at_threshold": 0.494},
        "foreground": {"pred": {"images": 5, **SPREAD, "mean": 0.9565}, "true": {"images": 5, **SPREAD, "mean": 0.609},
                       "overestimate": 34.75},
        "trivial_losses": {"network": 0.69, "all_positive": 0.54, "all_negative": 1.0,
                           "components": {"dice": {"weight": 1.0, "network": 0.5, "all_positive": 0.54,
                                                   "all_negative": 1.0}}},
        "batches": {"n": 12, "foreground": [0.1, 0.2, float("nan")], "mean": 0.15, "min": 0.1, "max": 0.2,
                    "expected": 0.12, "most_expected": 0.55, "positive_patches": 0.9, "notes": ["As expected."]},
        "inputs": {"images": 8, "rank_correlation": 1.0, "path_difference": 3e-7, "clipped_low": 0.01,
                   "clipped_high": 0.0, "constant": ["img|7"]},
        "run": {"directory": "runs/a", "steps": 480, "last": {"step": 480, "f1": 0.49, "loss": float("nan")},
                "verdicts": [{"step": 60, "level": "collapsed", "codes": ["constant_output"]}],
                "actions": [{"step": 66, "action": "warn"}], "status": "stopped"},
    }  # fmt: skip
    values: dict[str, Any] = {
        "subject": "runs/a/checkpoints/best.pt",
        "kind": "checkpoint",
        "verdict": Conclusion("collapsed", "constant_output", "constant output function: do not submit"),
        "findings": (finding, second),
        "causes": (Cause("masks do not belong to their images", ("AUROC 0.51", "F1 0.494 * 2"), "", ""),),
        "action": "audit the data",
        "next_command": "ssl-seg data audit data/particles",
        "statistics": statistics,
        "images": tuple(image_figures(n, ratio_pred=0.9506, ratio_true=None, shape=(320, 320)) for n in range(8)),
        "histograms": histograms(separated=False),
        "examples": (example(), example("case_1")),
        "notes": ("5 images at random",),
    }
    return Diagnosis(**(values | changes))


def healthy_diagnosis(**changes: Any) -> Diagnosis:
    """A network that has learned."""
    good = {"f1": 0.91, "f1_best": 0.915, "auroc": 0.98, "prob_std": 0.41, "prob_max": 0.999, "prevalence_pred": 0.33}
    base = constant_diagnosis()
    statistics = dict(base.statistics) | {
        "outputs": {"all": OUTPUT_ROW | {"prob_std": 0.41, "prob_min": 0.0, "prob_max": 1.0, "band_share": 0.02}},
        "nets": dict.fromkeys(("student", "teacher"), NET_ROW | good),
        "shapes": [
            {"shape": [256, 256], "images": 8, "same": 1, "ratio": 0.3, "ratio_min": 0.1, "ratio_max": 0.7,
             "true_min": 0.1, "true_max": 0.68, "closed_form": None, "never": 0.2, "always": 0.0, "hole": None},
        ],
        "scores": base.statistics["scores"]
        | {"f1": 0.91, "f1_macro": 0.91, "precision": 0.9, "recall": 0.92, "bias": "balanced"},
        "looked_at": base.statistics["looked_at"] | {"skipped": []},
    }  # fmt: skip
    values: dict[str, Any] = {
        "verdict": Conclusion("ok", "healthy", "nothing found"),
        "findings": (),
        "causes": (),
        "action": "",
        "next_command": "ssl-seg predict runs/a/checkpoints/best.pt IMAGES MASKS",
        "statistics": statistics,
        "images": tuple(image_figures(n) for n in range(8)),
        "histograms": histograms(separated=True),
    }
    return constant_diagnosis(**(values | changes))


def masks_diagnosis(**changes: Any) -> Diagnosis:
    """A folder of masks, 45 of 320 x 320 and 5 of 256 x 256, all the same; nothing else is known."""
    counts = [(45, (320, 320), 0.950625), (5, (256, 256), 0.71191)]
    images = [
        image_figures(
            n, shape=shape, part="new", logit=None, ratio_pred=ratio, ratio_true=None, f1=None,
            prob=Moments(ratio, 0.2, 0.0, 1.0), id=f"{shape[0]}_{n}",
        )
        for number, shape, ratio in counts for n in range(number)
    ]  # fmt: skip
    base = constant_diagnosis()
    shown = [example(f"320_{n}", (64, 64), image=None, truth=None, prob=None, f1=None, part="new") for n in range(4)]
    values: dict[str, Any] = {
        "subject": "predictions",
        "kind": "predictions",
        "statistics": {
            "looked_at": {"new": {"used": 50, "of": 50}, "read_as": "masks of 0 and 255"},
            "outputs": {},
            "shapes": [row | {"true_min": None, "true_max": None} for row in base.statistics["shapes"]],
            "foreground": {"pred": {"images": 50, **SPREAD}, "true": None, "overestimate": None},
        },
        "images": tuple(images),
        "histograms": (),
        "examples": tuple(shown),
    }
    return constant_diagnosis(**(values | changes))
