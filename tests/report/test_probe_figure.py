"""What the figure of a loss probe shows, read back from what was drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from ssl_seg.config.schedules import LossPhase
from ssl_seg.diagnose.loss_probe import Cosine, LossProbe, StateProbe
from ssl_seg.report.probe_figure import plot_probe


def make_state(name: str, cosine: float, share: float) -> StateProbe:
    return StateProbe(
        name,
        {"dice": 0.5, "variance": 250.0},
        {"dice": 1.0, "variance": 2.0},
        (Cosine("dice", "variance", cosine, 0.1, -1.0, 1.0),),
        ({"dice": share, "variance": 1 - share}, {"dice": 1.0}),
        (),
    )


def make_probe() -> LossProbe:
    phases = (LossPhase(0, {"dice": 3.0, "variance": 1.0}), LossPhase(5, {"dice": 2.0, "variance": 0.0}))
    constants = {
        "dice": {"all_negative": 1.0, "all_positive": 0.54, "base_rate": 0.7, "perfect": -0.0001},
        "variance": {"all_negative": 1.0, "all_positive": 1.0, "base_rate": 1.0, "perfect": 0.16},
    }
    states = (make_state("initialization", -0.8, 0.04), make_state("best.pt, step 9", float("nan"), 0.6))
    return LossProbe(phases, 4, (0.7, 0.3), 1, constants, states)


def test_each_phase_shows_its_weights_and_its_shares_in_each_state(drawn: list[Figure], tmp_path: Path) -> None:
    plot_probe(make_probe(), tmp_path / "new" / "p.png")
    bars = drawn[0].axes[0]
    labels = [text.get_text() for text in bars.get_yticklabels()]
    states = ["initialization", "best.pt, step 9"]
    assert labels == ["epoch 0: weights", *states, "epoch 5: weights", *states]
    dice, variance = ([bar.get_width() for bar in container] for container in bars.containers)
    assert dice == pytest.approx([0.75, 0.04, 0.6, 1.0, 1.0, 1.0])
    assert variance == pytest.approx([0.25, 0.96, 0.4, 0.0, 0.0, 0.0])
    assert [bar.get_x() for bar in bars.containers[1]] == pytest.approx(dice)
    assert bars.yaxis_inverted()
    texts = [text.get_text() for text in bars.texts]
    assert "96%" in texts
    assert "4%" not in texts  # no room in the bar
    assert cv2.imread(str(tmp_path / "new" / "p.png")).std() > 0


def test_each_state_has_its_cosines_with_conflicts_in_bold(drawn: list[Figure], tmp_path: Path) -> None:
    plot_probe(make_probe(), tmp_path / "p.png")
    first, second = drawn[0].axes[1:3]
    assert first.images[0].get_array().tolist() == [[1.0, -0.8], [-0.8, 1.0]]
    assert [(t.get_text(), t.get_weight()) for t in first.texts[:2]] == [("1.00", "normal"), ("-0.80", "bold")]
    assert [t.get_text() for t in second.texts] == ["1.00", "", "", "1.00"]
    assert second.get_title().endswith("best.pt, step 9")


def test_values_are_shaded_by_row_and_totals_are_weighted(drawn: list[Figure], tmp_path: Path) -> None:
    plot_probe(make_probe(), tmp_path / "p.png")
    table = drawn[0].axes[3]
    assert [t.get_text() for t in table.get_yticklabels()] == ["dice", "variance", "total, epoch 0", "total, epoch 5"]
    texts = np.array([t.get_text() for t in table.texts]).reshape(4, 6).tolist()
    assert texts[0] == ["1.000", "0.540", "0.700", "0.000", "0.500", "0.500"]
    assert texts[1][3:] == ["0.160", "250", "250"]
    assert texts[2][:3] == ["4.000", "2.620", "3.100"]
    assert texts[3][1] == "1.080"
    shades = np.asarray(table.images[0].get_array())
    assert shades[0, 0] == 1.0
    assert shades[0, 3] == 0.0
    assert shades[1, 3:].tolist() == [0.0, 1.0, 1.0]
