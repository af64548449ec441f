"""From findings and figures to likely causes, each with its evidence, to one action, and to the command to run next.

Each cause is a small rule from the figures of a diagnosis; one that no figure speaks for is not named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_seg.diagnose.catalog import LIMITS
from ssl_seg.diagnose.examples import choose_examples
from ssl_seg.diagnose.image_rules import CONSTANT, describe_verdict
from ssl_seg.diagnose.result import Cause, Diagnosis
from ssl_seg.diagnose.tally import Tally
from ssl_seg.errors import counted, name_examples, quote
from ssl_seg.files import next_free
from ssl_seg.monitor.actions import FAR, NO_CONTEXT, Context
from ssl_seg.monitor.catalog import limit
from ssl_seg.monitor.findings import RuleFinding, Verdict
from ssl_seg.run.directory import CONFIG_FILE
from ssl_seg.scores.intervals import LEAST_CASES
from ssl_seg.scores.sameness import FEWEST
from ssl_seg.scores.text import number, share

MOST = 3
RANK = 0.99
"""Rank correlation of raw image and input below which normalization has changed what is bright and what is dark."""
GAIN = 0.02
"""Gain of AUROC over an untrained network below which the training has done nothing."""
HIGHEST = 1 - 1e-6
"""Threshold above which probabilities of float32 cannot be cut."""
FEW, MANY = 0.1, 2.0
"""Shares of foreground in the batches beside what they should hold at least and at most."""


@dataclass(frozen=True)
class Subject:
    """What was examined: a checkpoint, or a folder of predictions.

    For a checkpoint, ``root`` is the data folder of its training, ``data`` the folder that was looked at instead and
    ``which`` the network. For predictions, ``data`` is the folder of true masks, if there is one.
    """

    checkpoint: Path | None = None
    root: str = ""
    data: str | None = None
    which: str = ""
    predictions: Path | None = None
    context: Context = NO_CONTEXT
    """Context of the training; predictions are examined as foreground and background."""
    is_elsewhere: bool = False
    """Whether the folder holds none of the validation cases of the training."""


@dataclass(frozen=True)
class DiagnosisFacts:
    """The findings and the statistics of a diagnosis."""

    findings: Sequence[RuleFinding]
    statistics: Mapping[str, Any]
    subject: Subject

    @property
    def codes(self) -> frozenset[str]:
        """Codes of the findings."""
        return frozenset(f.code for f in self.findings)

    @property
    def has_collapsed(self) -> bool:
        """Whether any finding is a collapse."""
        return any(f.level == "collapsed" for f in self.findings)

    def row(self, net: str) -> Mapping[str, Any]:
        """Return a row of ``statistics["nets"]``, empty where it was not measured."""
        found: Mapping[str, Any] = self.statistics.get("nets", {}).get(net, {})
        return found

    def message(self, code: str) -> str:
        """Return the message of the first finding with this code."""
        return next(f.message for f in self.findings if f.code == code)

    def list_history(self) -> list[str]:
        """Return what the run said of itself: the first collapse, and what was done."""
        run = self.statistics.get("run", {})
        told = [
            f"step {v['step']}: the run's own verdict was {v['level']} {', '.join(v['codes'])}"
            for v in run.get("verdicts", [])
            if v["level"] == "collapsed"
        ]
        done = [f"step {a['step']}: {a['action']}" for a in run.get("actions", [])]
        further = [f"and {counted(len(done) - 2, 'further action')}"] * (len(done) > 2)
        return [*told[:1], *done[:2], *further]

    def train(self, *options: str) -> str:
        """Return the command of a training like this one with other settings, into a folder that is free."""
        run = self.statistics.get("run")
        if run is None:
            return " ".join([f"ssl-seg train --data {quote(self.subject.root or 'DATA')}", *options])
        out = quote(next_free(Path(run["directory"])))
        return " ".join([f"ssl-seg train --config {self.config}", *options, f"--out {out}"])

    def recover(self) -> str:
        """Return the command of a training that recovers from a collapse; of a slower one if this one already did."""
        return self.slow_down() if self.subject.context.recovers else self.train("--set monitor.on_collapse=recover")

    def slow_down(self) -> str:
        """Return the command of a training with smaller updates."""
        context = self.subject.context
        lr = context.usual_lr if context.lr > FAR * context.usual_lr else context.lr / 10
        rate = [f"--set optim.lr={lr:g}"] if context.lr else []
        return self.train(*rate, "--set optim.clip_norm=1.0")

    @property
    def has_exploded(self) -> bool:
        """Whether the monitor of the run reported it."""
        return any("component_explosion" in v["codes"] for v in self.statistics.get("run", {}).get("verdicts", []))

    @property
    def config(self) -> str:
        """The configuration of the run, quoted; or the data of the training as an option."""
        run = self.statistics.get("run")
        if run is None:
            return f"--data {quote(self.subject.root or 'DATA')}"
        return quote(Path(run["directory"]) / CONFIG_FILE)

    @property
    def checkpoint(self) -> str:
        """The checkpoint, quoted, or a place for one."""
        return "CHECKPOINT" if self.subject.checkpoint is None else quote(self.subject.checkpoint)

    def audit(self) -> str:
        """Return the command that looks at the data."""
        return f"ssl-seg data audit {quote(self.subject.data or self.subject.root or 'DATA')}"

    def evaluate(self) -> str:
        """Return the command that scores the checkpoint."""
        data = "" if self.subject.data is None else f" --data {quote(self.subject.data)}"
        data += " --all" if self.subject.is_elsewhere else ""
        return f"ssl-seg evaluate {self.checkpoint}{data}"

    def examine(self) -> str:
        """Return the command that looks closer at what was examined: for predictions, at the checkpoint behind them."""
        if self.subject.checkpoint is not None:
            return self.evaluate()
        return "ssl-seg diagnose CHECKPOINT --data DATA"


CauseRule = Callable[[DiagnosisFacts], Cause | None]


def _suspect_data(facts: DiagnosisFacts) -> Cause | None:
    """Nothing to learn: labeled cases without foreground."""
    batches = facts.statistics.get("batches")
    if batches is None or batches["expected"] > 0:
        return None
    found = f"{batches['n']} batches {share(batches['mean'])}"
    evidence = [f"the labeled cases hold {batches['expected']:.1%} foreground, {found}"]
    action = "check masks and data.label_values (background first)"
    return Cause("the labeled masks are empty", evidence, action, facts.audit())


def _suspect_paths(facts: DiagnosisFacts) -> Cause | None:
    """Prediction feeds the network other values than training did."""
    inputs = facts.statistics.get("inputs", {})
    difference = inputs.get("path_difference")
    if difference is None or difference <= LIMITS["input_difference"].value:
        return None
    evidence = [f"inputs of training and prediction differ by up to {difference:.3g} standard deviations"]
    text = "images are normalized differently at prediction than in training"
    action = "use one normalization for both: ssl_seg.data.views.transforms.normalize"
    return Cause(text, evidence, action, facts.evaluate())


def _suspect_images(facts: DiagnosisFacts) -> Cause | None:
    """Images that hold nothing, or whose gray values the network sees in another order."""
    inputs, evidence = facts.statistics.get("inputs", {}), []
    if not facts.has_collapsed:
        return None
    if constant := inputs.get("constant"):
        evidence.append(f"{len(constant)} images are constant, for example '{constant[0]}'")
    rank = inputs.get("rank_correlation")
    if rank is not None and rank < RANK:
        evidence.append(f"rank correlation of an image and what the network sees of it is {rank:.3f}, not 1")
    if not evidence:
        return None
    text = "images are empty or changed when they reach the network"
    action = "export the images again with their full range; leave out constant ones"
    return Cause(text, evidence, action, facts.audit())


def _suspect_finite(facts: DiagnosisFacts) -> Cause | None:
    """The updates were too large."""
    if "non_finite" not in facts.codes and not (facts.has_exploded and facts.has_collapsed):
        return None
    seen = [facts.message("non_finite")] if "non_finite" in facts.codes else []
    lr = facts.subject.context.lr  # 0: that of predictions is not known
    evidence = [*seen, *facts.list_history(), *([f"optim.lr is {lr:g}"] if lr else [])]
    text = "the updates were too large: the training has diverged"
    return Cause(text, evidence, "train again with a lower optim.lr and optim.clip_norm=1", facts.slow_down())


def _suspect_inverted(facts: DiagnosisFacts) -> Cause | None:
    """Background and foreground are swapped: for the network, or, where it ranks its own labeled patches well, in the
    images that it was scored on. Nothing where these are too few to tell."""
    found = [f for f in facts.findings if f.code == "inverted_output"]
    if not found:
        return None
    evidence, train = [found[0].message], facts.row("train_probe").get("auroc")
    if train is not None and train >= limit("informative_auroc"):
        text = "the scored images look the other way round than the labeled ones, or their masks are swapped"
        evidence.append(f"on its own labeled patches: AUROC {train:.3f}")
        return Cause(text, evidence, "look at the scored images and their masks beside the labeled ones", facts.audit())
    if all(f.level != "collapsed" for f in found):
        return None
    text = "background and foreground are swapped, in the label values or by the sign of a loss"
    return Cause(text, evidence, "check data.label_values (background first)", facts.audit())


def _suspect_teacher(facts: DiagnosisFacts) -> Cause | None:
    """The teacher is behind."""
    if "teacher_diverged" not in facts.codes:
        return None
    evidence = [f"{net}: {_rank(facts.row(net))}" for net in ("student", "teacher")]
    text = "the teacher has not followed the student: a cold EMA, or stale BatchNorm buffers"
    return Cause(text, evidence, "use the student: --which student", f"{facts.evaluate()} --which student")


def _suspect_mode(facts: DiagnosisFacts) -> Cause | None:
    """BatchNorm: good with batch statistics, bad with the running ones."""
    if "mode_gap" not in facts.codes:
        return None
    modes = {"train mode": "train_mode", "eval mode": "student"}
    evidence = [f"student in {mode}: {_rank(facts.row(row))}" for mode, row in modes.items()]
    text = "the running statistics of BatchNorm do not fit the images"
    return Cause(text, evidence, "train again with network.norm=instance", facts.train("--set network.norm=instance"))


def _suspect_costs(facts: DiagnosisFacts) -> Cause | None:
    """The loss weighs one side many times as much as the other."""
    extreme = [cost for cost in facts.subject.context.costs if cost.is_extreme]
    over = facts.statistics.get("foreground", {}).get("overestimate")
    suspected = [cost for cost in extreme if over is None or (cost.factor > 1) == (over > 0)]
    if not suspected:
        return None
    evidence = [
        f"{cost.key} is {cost.value}: a voxel of {'foreground' if cost.factor > 1 else 'background'} counts "
        f"{max(cost.factor, 1 / cost.factor):g} times as much"
        for cost in suspected
    ]
    if over is not None:
        true = facts.statistics["foreground"]["true"]["mean"]
        evidence.append(f"predicted foreground is {over:+.1f} points off the true {true:.1%}")
    first = suspected[0]
    side = "foreground" if first.factor > 1 else "background"
    text = f"the loss weighs {side} so heavily that to predict it everywhere is cheap"
    setting = f"{first.key}={first.neutral}"
    return Cause(text, evidence, f"train again with {setting}", facts.train(f"--set {quote(setting)}"))


def _suspect_layers(facts: DiagnosisFacts) -> Cause | None:
    """A part of the network passes nothing on."""
    layers = facts.statistics.get("layers", {})
    zero, broken = ([f"'{n}'" for n in layers.get(key, [])] for key in ("zero_weights", "non_finite_weights"))
    evidence = [f"all weights of {name_examples(zero, 2)} are 0"] * bool(zero)
    evidence += [f"there is NaN or infinity in {name_examples(broken, 2)}"] * bool(broken)
    if layers.get("silent") is not None:
        evidence.append(f"from '{layers['silent']}' on, nothing varies between voxels or patches")
    if not evidence:
        return None
    text = "a part of the network is dead: large updates have driven it where no gradient brings it back"
    return Cause(text, evidence, _recovering(facts), facts.recover())


def _suspect_coverage(facts: DiagnosisFacts) -> Cause | None:
    """Foreground everywhere, behind an inference that leaves out a border."""
    uniform = "uniform_ratio" in facts.codes
    products = any(row["closed_form"] for row in facts.statistics["shapes"])
    if "coverage_hole" not in facts.codes and not (uniform and products):
        return None
    evidence = [facts.message(code) for code in ("uniform_ratio", "coverage_hole") if code in facts.codes]
    text = "windows of the inference do not cover the whole image"
    action = "predict with `ssl-seg predict`, whose windows cover every voxel"
    if uniform:
        text = "the network says foreground everywhere, and the inference leaves out a border: only the border varies"
        action = "examine the checkpoint that made them: the network is wrong, not the border"
    return Cause(text, evidence, action, facts.examine())


def _suspect_batches(facts: DiagnosisFacts) -> Cause | None:
    """Batches that do not hold what they should."""
    batches = facts.statistics.get("batches")
    if batches is None or batches["mean"] is None or batches["expected"] == 0:
        return None
    low, high = batches["mean"] < FEW * batches["expected"], batches["mean"] > MANY * batches["most_expected"]
    if not (low or high or batches["notes"]):
        return None
    numbers = (
        f"{batches['n']} batches hold {share(batches['min'])} to {share(batches['max'])} foreground, on average "
        f"{share(batches['mean'])}; their cases {batches['expected']:.2%}"
    )
    change = "lower" if high else "raise"
    action = f"{change} data.foreground_ratio, or set batch.positive_ratio"
    text = "the training batches do not hold what they should"
    return Cause(text, [numbers, *batches["notes"]], action, f"ssl-seg data batches {facts.config}")


def _suspect_loss(facts: DiagnosisFacts) -> Cause | None:
    """The constant that the network has nearly become costs no more than what it has learned."""
    losses, own = facts.statistics.get("trivial_losses"), facts.row(facts.subject.which)
    codes = [f.code for f in facts.findings if f.net == facts.subject.which]
    if losses is None or not {"all_positive", "all_negative", *CONSTANT} & set(codes):
        return None
    near = "all_positive" if own["prevalence_pred"] > own["prevalence_true"] else "all_negative"
    if losses["network"] < losses[near]:
        return None
    evidence = [f"supervised loss on the probe: network {losses['network']:.3f}, {near} {losses[near]:.3f}"]
    text = f"the loss does not punish {near.replace('_', '-')}"
    command = f"ssl-seg probe-loss {facts.config} --checkpoint {facts.checkpoint}"
    return Cause(text, evidence, "train again with loss.weights of cross_entropy and dice only", command)


def _suspect_history(facts: DiagnosisFacts) -> Cause | None:
    """The run itself said so at some step."""
    evidence = facts.list_history()
    if not evidence or not facts.has_collapsed:
        return None
    return Cause("the training collapsed and went on", evidence, _recovering(facts), facts.recover())


def _suspect_training(facts: DiagnosisFacts) -> Cause | None:
    """No better than an untrained network, or not even on its own training cases."""
    own, untrained = facts.row(facts.subject.which), facts.row("untrained")
    if not own or not untrained or own["auroc"] is None:
        return None
    if own["auroc"] > max(untrained["auroc"], limit("informative_auroc")) + GAIN:
        return None
    step = facts.statistics["looked_at"]["step"]
    evidence = [
        f"after {step} steps: AUROC {own['auroc']:.3f}, best F1 {number(own['f1_best'])}; an untrained network "
        f"{untrained['auroc']:.3f} and {number(untrained['f1_best'])}"
    ]
    train = facts.row("train_probe")
    if train and train["auroc"] is not None:
        evidence.append(f"on its own labeled patches: AUROC {train['auroc']:.3f}, best F1 {number(train['f1_best'])}")
    text = "nothing has been learned: too few steps, a wrong learning rate, or masks of other images"
    action = "train longer; if that changes nothing, check with `ssl-seg data audit` that masks belong to their images"
    return Cause(text, evidence, action, facts.train(f"--steps {max(2 * step, 500)}"))


def _suspect_generalization(facts: DiagnosisFacts) -> Cause | None:
    """Good on training cases only."""
    own, train = facts.row(facts.subject.which), facts.row("train_probe")
    if not own or not train or own["f1_best"] is None or train["f1_best"] is None:
        return None
    gaps = [row["f1_best"] - row["trivial_f1"] for row in (train, own)]
    if gaps[0] < limit("batch_margin") or gaps[0] - gaps[1] < limit("train_gap"):
        return None
    evidence = [f"best F1 above trivial: {gaps[0]:+.3f} on labeled training patches, {gaps[1]:+.3f} on validation"]
    command = facts.train("--set augment.elastic=0.3", "--set augment.labeled_factor=2")
    action = "train again with more augmentation; more labels help most"
    return Cause("the few labeled cases are known by heart", evidence, action, command)


def _suspect_threshold(facts: DiagnosisFacts) -> Cause | None:
    """Learned, but the threshold is the wrong place to cut; of more than two classes there is none."""
    sweep, images = facts.statistics.get("sweep"), facts.statistics.get("scores", {}).get("images", 0)
    is_sure = images >= FEWEST
    gains = is_sure and sweep is not None and sweep["best_f1"] - sweep["f1_at_threshold"] > limit("shift_gap")
    codes = [code for code in ("shifted_threshold", *(["foreground_bias"] if gains else [])) if code in facts.codes]
    threshold = facts.row(facts.subject.which).get("threshold_best")
    if sweep is not None and (is_sure or threshold is None):
        threshold = sweep["best_threshold"]
    if not codes or threshold is None or threshold > HIGHEST or facts.subject.context.num_classes > 2:
        return None
    evidence = [facts.message(codes[0])]
    if sweep is not None:
        best = f"{sweep['best_f1']:.3f} at {sweep['best_threshold']:g}"
        evidence.append(f"whole images: F1 {sweep['f1_at_threshold']:.3f} at {sweep['threshold']:g}, {best}")
    text = f"{threshold:.2g}" if threshold < 1e-3 else f"{threshold:.6f}".rstrip("0")
    which = f" --which {facts.subject.which}" if facts.subject.which else ""
    command = f"ssl-seg calibrate {facts.checkpoint}{which}"
    if images < LEAST_CASES:  # too few for calibrate to change the threshold
        command = f"ssl-seg predict {facts.checkpoint} IMAGES OUTPUT{which} --uncalibrated --threshold {text}"
    present = 0.5 if sweep is None else sweep["threshold"]
    return Cause(
        f"the threshold of {present:g} does not fit", evidence, f"cut at {text}, as chosen on validation", command
    )


def _recovering(facts: DiagnosisFacts) -> str:
    if facts.subject.context.recovers:
        return "train again with a lower optim.lr"
    return "train again with monitor.on_collapse=recover, which lowers optim.lr and goes back by itself"


RULES: tuple[CauseRule, ...] = (
    _suspect_data,
    _suspect_finite,
    _suspect_paths,
    _suspect_inverted,
    _suspect_teacher,
    _suspect_mode,
    _suspect_images,
    _suspect_costs,
    _suspect_layers,
    _suspect_coverage,
    _suspect_batches,
    _suspect_loss,
    _suspect_history,
    _suspect_threshold,
    _suspect_generalization,
    _suspect_training,
)
"""In the order of what explains most: wrong data before wrong settings."""


def _rank(row: Mapping[str, Any]) -> str:
    return f"best F1 {number(row.get('f1_best'))}, AUROC {number(row.get('auroc'))}"


def explain(verdict: Verdict, statistics: Mapping[str, Any], subject: Subject) -> tuple[tuple[Cause, ...], str, str]:
    """Return at most three causes that measured figures speak for, the most likely first; what to do; a command.

    What to do about a cause that was measured goes before what the verdict advises without one.
    """
    facts = DiagnosisFacts(verdict.findings, statistics, subject)
    if verdict.level == "ok":
        return (), "", _command_if_healthy(facts)
    causes = tuple(found for rule in RULES if (found := rule(facts)) is not None)[:MOST]
    if causes:
        return causes, causes[0].action, causes[0].command
    is_collapse = verdict.level == "collapsed" and subject.checkpoint is not None
    return causes, verdict.action, facts.recover() if is_collapse else facts.examine()


def _command_if_healthy(facts: DiagnosisFacts) -> str:
    if facts.subject.checkpoint is None:
        return facts.examine()
    return f"ssl-seg predict {facts.checkpoint} IMAGES OUTPUT"


def make_diagnosis(
    verdict: Verdict,
    statistics: Mapping[str, Any],
    subject: Subject,
    tally: Tally,
    notes: Sequence[str],
    healthy: str,
) -> Diagnosis:
    """Return the diagnosis that a verdict and figures make; ``healthy`` is the message where nothing was found."""
    causes, action, command = explain(verdict, statistics, subject)
    return Diagnosis(
        subject=str(subject.checkpoint or subject.predictions),
        kind="predictions" if subject.checkpoint is None else "checkpoint",
        verdict=describe_verdict(verdict, healthy),
        findings=verdict.findings,
        causes=causes,
        action=action,
        next_command=command,
        statistics=statistics,
        images=tuple(tally.images),
        histograms=tally.histograms(),
        examples=choose_examples(tally.examples, tally.median),
        notes=tuple(notes),
    )
