"""What to do about a finding: one action, chosen by the state of the run, that has been tried on that fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_seg.config import Config, LossConfig
from ssl_seg.config.learning import OptimConfig
from ssl_seg.config.schedules import list_phases, list_trained
from ssl_seg.losses import list_options
from ssl_seg.monitor.findings import RuleFinding

USUAL_LR: Mapping[str, float] = {"sgd": 0.1}
"""Learning rates that are usual for optimizers whose rate is not that of the others."""
FAR = 10.0
"""Factor from a usual learning rate from which a rate is suspected before anything else."""
EXTREME_COST = 10.0
"""Factor of foreground over background in the loss, or the other way round, that is worth a word."""
WEIGHED_LENGTH = 6
"""Factor of the steps for classes that weigh alike: at first far too much of the rare ones is predicted."""
MANY_STEPS = 2000
"""Steps after which training longer no longer helps a network that has learned nothing."""


@dataclass(frozen=True)
class Cost:
    """A setting of the loss: ``factor`` above 1 makes foreground count more than background, below 1 less."""

    key: str
    value: str
    """As configured."""
    factor: float
    neutral: str
    """The value that has no effect."""

    @property
    def is_extreme(self) -> bool:
        """Whether it alone may decide what is predicted."""
        return not 1 / EXTREME_COST < self.factor < EXTREME_COST


@dataclass(frozen=True)
class Context:
    """What a run is like, as far as advice depends on it."""

    num_classes: int = 2
    steps: int = 0
    """Steps of the whole run."""
    lr: float = 0.0
    usual_lr: float = 3e-4
    """Usual learning rate of its optimizer."""
    clip_norm: float | None = None
    act_on: Sequence[str] = ()
    """Codes of warnings that count as a collapse."""
    recovers: bool = False
    """Whether monitor.on_collapse is ``recover``."""
    norm: str = "instance"
    foreground_ratio: float = 0.0
    costs: Sequence[Cost] = ()
    """Settings of the loss that weigh foreground against background."""
    may_weigh_classes: bool = False
    """Whether a component of the loss takes weights of the classes, and has none or leaves a class out."""


NO_CONTEXT = Context()
"""Nothing is known of the run."""
ActionCondition = Callable[[Context, RuleFinding], bool]


@dataclass(frozen=True)
class Action:
    """What to do, and when: ``text`` may name ``{low}``, ``{usual}``, ``{length}``, ``{many}`` and ``{cost}``.

    Without ``when`` it is for any run.
    """

    text: str
    when: ActionCondition | None = None


def read_context(config: Config) -> Context:
    """Return the context of a run."""
    optim = config.optim
    usual = USUAL_LR.get(optim.name, float(OptimConfig.model_fields["lr"].default))
    return Context(
        num_classes=config.data.num_classes,
        steps=config.length.steps,
        lr=optim.lr,
        usual_lr=usual,
        clip_norm=optim.clip_norm,
        act_on=config.monitor.act_on,
        recovers=config.monitor.on_collapse == "recover",
        norm=config.network.norm,
        foreground_ratio=config.data.foreground_ratio,
        costs=read_costs(config.loss),
        may_weigh_classes=_may_weigh_classes(config.loss),
    )


def list_components(loss: LossConfig) -> tuple[str, ...]:
    """Return the names of the components of a loss that have a weight in any phase."""
    return tuple(dict.fromkeys(name for phase in list_phases(loss) for name in phase.weights))


def read_costs(loss: LossConfig) -> tuple[Cost, ...]:
    """Return the settings of the loss, and of the components that are trained with, that weigh foreground."""
    found = [Cost(f"loss.{key}", f"{value:g}", factor, "1") for key, value, factor in _list_pairs(vars(loss))]
    for name in list_trained(list_phases(loss)):
        options, where = loss.options.get(name, {}), f"loss.options.{name}"
        found += [Cost(f"{where}.{key}", f"{value:g}", factor, "1") for key, value, factor in _list_pairs(options)]
        if (own := options.get("class_weights")) is not None and own[0] > 0:
            factor = sum(own[1:]) / (len(own) - 1) / own[0]
            found.append(Cost(f"{where}.class_weights", str(list(own)), factor, "null"))
    return tuple(found)


def choose_action(
    finding: RuleFinding, context: Context, actions: Mapping[str, tuple[Action, ...]] | None = None
) -> str:
    """Return the first action of the code of a finding whose condition holds, from ``actions`` or else ACTIONS."""
    action = next(a for a in (actions or ACTIONS)[finding.code] if a.when is None or a.when(context, finding))
    cost = next(iter(_list_guilty(context, finding)), None)
    return action.text.format(
        low=f"{context.lr / 10:g}",
        usual=f"{context.usual_lr:g}",
        length=f": --steps {2 * context.steps}" if context.steps else "",
        many=WEIGHED_LENGTH * max(context.steps, 1),
        cost="" if cost is None else f"{cost.key}={cost.neutral}",
    )


def _list_guilty(context: Context, finding: RuleFinding) -> list[Cost]:
    """Return the extreme costs that push to the side that a finding is about; all of them where it has none."""
    extreme = [cost for cost in context.costs if cost.is_extreme]
    sides = {"all_positive": True, "all_negative": False}
    side = sides.get(finding.code, finding.value > 1 if finding.code == "foreground_bias" else None)
    return [cost for cost in extreme if side is None or (cost.factor > 1) == side]


def _may_weigh_classes(loss: LossConfig) -> bool:
    takers = [name for name in list_components(loss) if "class_weights" in list_options(name)]
    given = [loss.class_weights, *(loss.options.get(name, {}).get("class_weights") for name in takers)]
    set_ones = [weights for weights in given if weights]
    return bool(takers) and all(weights != "auto" and 0 in weights for weights in set_ones)


_WEIGHTED = Action("train again with {cost}", lambda run, finding: bool(_list_guilty(run, finding)))
_FAST = Action("train again with optim.lr={usual}", lambda run, _: run.lr > FAR * run.usual_lr)
_RECOVER = Action("train again with monitor.on_collapse=recover", lambda run, _: not run.recovers)
_SLOWER = Action("train again with optim.lr={low}")
_USUAL = Action("train again with optim.lr={usual}", lambda run, _: 0 < run.lr < run.usual_lr / FAR)
_STATE = (_WEIGHTED, _FAST, _RECOVER, _SLOWER)
_CUT = Action("choose the cut on validation: `ssl-seg calibrate RUN`", lambda run, _: run.num_classes == 2)
_LONGER = Action("train longer{length}")

ACTIONS: Mapping[str, tuple[Action, ...]] = {
    "non_finite": (_FAST, _RECOVER, _SLOWER),
    "zero_loss": (Action("count the foreground of the labeled masks: `ssl-seg data audit DATA`"),),
    "blind_probe": (
        Action(
            "put cases with foreground and background into validation: `ssl-seg split make`; until then use last.pt"
        ),
    ),
    "mode_gap": (Action("train again with network.norm=instance"),),
    "loss_metric_divergence": (Action("let `ssl-seg diagnose` compare what training and prediction feed the network"),),
    "inverted_output": (
        Action(
            "check data.label_values and data.label_map (background first): `ssl-seg data audit DATA`; if F1 on the "
            "training patches is high, look at the validation masks: these images may be unlike the labeled ones"
        ),
    ),
    "constant_output": _STATE,
    "uniform_ratio": _STATE,
    "all_negative": _STATE,
    "all_positive": _STATE,
    "teacher_diverged": (Action("use the student: --which student"),),
    "component_explosion": (_FAST, _RECOVER, _SLOWER),
    "trivial_loss": (
        _USUAL,
        _FAST,
        Action("let `ssl-seg probe-loss` measure which components pull apart"),
    ),
    "not_above_trivial": (
        _USUAL,
        Action(
            "check that masks belong to their images: `ssl-seg data audit DATA`", lambda run, _: run.steps >= MANY_STEPS
        ),
        _LONGER,
    ),
    "shifted_threshold": (_WEIGHTED, _CUT, _LONGER),
    "missing_class": (
        Action("train again with loss.class_weights=auto and --steps {many}", lambda run, _: run.may_weigh_classes),
        Action("give this class a larger weight, and train longer", lambda run, _: not run.steps),
        _LONGER,
    ),
    "foreground_bias": (_WEIGHTED, _CUT, _LONGER),
    "overfitting": (Action("use best.pt, which is from before"),),
    "plateau": (_USUAL, Action("let `ssl-seg diagnose` measure what stands in the way")),
    "pseudo_label_share": (
        Action("train again with method.options.confidence=0.8", lambda _, finding: finding.value < 0.5),
        Action("raise method.options.confidence"),
    ),
    "pseudo_label_drift": (
        _WEIGHTED,
        _FAST,
        Action("train the labels alone beside it: --set method.name=supervised"),
    ),
}
"""The first action whose condition holds is given. `docs/collapse.md` says on what each one has been tried."""


def _list_pairs(options: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return key, value and factor of the costs that are set."""
    directions = {"fn_cost": 1, "pos_weight": 1, "fp_cost": -1}
    values = {key: float(options[key]) for key in directions if options.get(key) is not None}
    return [(key, value, value ** directions[key]) for key, value in values.items()]
