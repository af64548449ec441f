"""What a run may come to, and what has come true."""

from __future__ import annotations

from typing import Any

import pytest
from test_lint import small_run

from ssl_seg.inference.scoring import parse_cases
from ssl_seg.monitor.catalog import CODES
from ssl_seg.run.scenarios import SCENARIOS, describe_scenarios, find_scenarios

REMARKS = {
    "blind_probe", "shifted_threshold", "not_above_trivial", "missing_class", "foreground_bias", "pseudo_label_share",
}  # fmt: skip
GOOD, TRIVIAL = [40, 5, 10, 100], [50, 100, 0, 5]


def find(events: list[dict[str, Any]], counts: list[int]) -> dict[str, str]:
    rows = [{"id": f"c{i}", "foreground": counts, "classes": [counts], "nonfinite": 0} for i in range(9)]
    return find_scenarios(events, parse_cases(rows, (1,)))


def test_each_code_of_the_monitor_belongs_to_one_scenario_or_is_a_remark() -> None:
    codes = [code for own in SCENARIOS.values() for code in own]
    assert sorted([*codes, *REMARKS]) == sorted(CODES)


def test_what_is_done_is_what_the_settings_say() -> None:
    policies = {"plateau_response": {"base": 1.5, "gain": 0.85}, "early_stopping": {"patience": 7}}
    config = small_run(20, policies, {"schedule": "reduce_on_plateau", "plateau_patience": 3})
    success, oscillation, divergence, _ = describe_scenarios(config, ())
    assert "200 steps; the run ends after 7 epochs" in success
    for part in ("rate x 0.5 after 3 epochs", "rate x 1.5, at each further plateau + 0.85", "ends after 7 epochs"):
        assert part in oscillation
    assert "the run continues (monitor.on_collapse=warn)" in divergence
    plain = describe_scenarios(small_run(20, {}), ())
    assert plain[0].endswith("200 steps, best.pt is kept")
    assert plain[1].endswith("it is named, and the run continues")


@pytest.mark.parametrize(("on_collapse", "said"), [("stop", "exit code 3"), ("recover", "lower_lr, stop")])
def test_a_divergence_is_answered_by_the_policy_in_force(on_collapse: str, said: str) -> None:
    config = small_run(20, {})
    monitor = config.monitor.model_copy(update={"on_collapse": on_collapse, "act_on": ("plateau",)})
    _, oscillation, divergence, _ = describe_scenarios(
        config.model_copy(update={"monitor": monitor}), ("lower_lr", "stop")
    )
    assert said in divergence
    assert "plateau as a collapse" in oscillation
    assert "as a collapse" not in divergence


def test_what_came_true_is_told_with_its_first_step() -> None:
    events = [
        {"event": "started"},
        {"event": "verdict", "step": 30, "codes": ["plateau"]},
        {"event": "verdict", "step": 40, "codes": ["plateau", "all_negative"]},
        {"event": "verdict", "step": 50, "codes": []},
    ]
    assert find(events, TRIVIAL) == {"oscillation": "plateau at step 30", "collapse": "all_negative at step 40"}
    assert list(find(events[:1], GOOD)) == ["success"]
    assert find(events[:1], TRIVIAL) == {}
