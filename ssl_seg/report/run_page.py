"""The page of a run: verdict, score, curves, cases, and what it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ssl_seg.config import NETS
from ssl_seg.data.facts import format_size
from ssl_seg.data.home import find_home
from ssl_seg.errors import SslSegError, counted, name_examples, quote
from ssl_seg.report.figures import Drawing, describe_class_colors
from ssl_seg.report.page import Page, PageSection, keep_filled, make_facts, make_image_rows
from ssl_seg.report.run_figures import draw_curves, draw_foreground_scatter, draw_reliability, draw_scores
from ssl_seg.report.run_record import RunRecord
from ssl_seg.report.score_cells import describe_absent, make_object_rows, name_subject, show_margin
from ssl_seg.report.table import Table, to_table
from ssl_seg.run.directory import find_last
from ssl_seg.run.final_scores import NetworkScore, summarize_network
from ssl_seg.run.seal import Ledger, find_openings
from ssl_seg.scores.text import UNKNOWN, figure, number, share, shown_f1

if TYPE_CHECKING:
    from ssl_seg.report.case_pictures import PredictedCase

MOST_CASES = 500
"""Rows of the table of cases; of more, the worst and the best half."""
MOST_EVENTS = 200
MOST_CLASSES = 16
"""Columns of classes in the table of cases; of more classes there are none."""
_SHOWN = ("worst", "median", "best")
_SOURCES = {"best": "best on the probe", "last": "last step", "swa": "average of weights"}
"""File in which a network was when it was scored -> what it is called; best.pt is the file of the one used since."""
_MARKS = {
    (False, False): "",
    (True, False): " (used)",
    (False, True): " (collapsed)",
    (True, True): " (used, collapsed)",
}
"""Whether a network is used, and whether it has collapsed -> what is said behind its name."""
_SKIPPED = ("event", "time", "findings", "contents", "opening", "checkpoints", "splits", "action", "text")
"""Values of events that are not listed: long ones, and those that stand elsewhere."""


def predict_examples(record: RunRecord, seconds: float | None = None) -> tuple[list[PredictedCase], str]:
    """Return the worst, the median and the best validation case, predicted with the network that is used; or none, and
    why there are none."""
    from ssl_seg.report.case_pictures import choose_spread, predict_cases
    from ssl_seg.results.evaluation import EvaluateRequest

    if record.used is None:
        return [], "No pictures of cases: they are made when the run has ended and its networks are scored."
    rows = choose_spread(record.used.score.summarize()["cases"], len(_SHOWN))
    expected = _expect_seconds(record, len(rows))
    if seconds is not None and expected > seconds:
        return [], (
            f"No pictures of cases: they would take about {expected:.0f} s. `ssl-seg report {quote(record.run.path)}` "
            "makes them."
        )
    request = EvaluateRequest(record.run.best, calibrated=False)
    try:
        contents = None if record.split is None else record.split.content
        return predict_cases(request, rows, record.used.net, all_planes=True, contents=contents), ""
    except (SslSegError, OSError, KeyError, ValueError, RuntimeError, MemoryError) as error:
        return [], f"No pictures of cases: {str(error).rstrip('.')}."


def _expect_seconds(record: RunRecord, count: int) -> float:
    """Return how long the prediction of some cases takes, by what the run has measured; 0 where it has not."""
    estimate = find_last(record.events, "estimate")
    cases = 0 if record.used is None else len(record.used.score.cases)
    return float(estimate.get("scoring") or 0.0) * count / max(cases, 1)


def make_run_page(record: RunRecord, cases: Sequence[PredictedCase] = (), why_no_cases: str = "") -> Page:
    """Return the page of a run.

    Args:
        record: what its directory says.
        cases: the worst, the median and the best one.
        why_no_cases: is said where there are none.
    """
    scores = draw_scores(record)
    names = _SHOWN if len(cases) == len(_SHOWN) else _SHOWN[:1] + _SHOWN[-1:] if len(cases) == 2 else ("",) * len(cases)
    named = [(name or "case", case) for name, case in zip(names, cases, strict=True)]
    sections = (
        PageSection(
            "Score",
            drawings=() if scores is None else (scores,),
            tables=tuple(_make_score_tables(record)),
        ),
        PageSection("Cases", (why_no_cases or _explain_cases(record),), rows=make_image_rows(named)),
        PageSection("Curves", _note_looks(record), draw_curves(record)),
        _make_calibration_section(record),
        _make_case_section(record),
        PageSection("What happened", tables=(_make_event_table(record),)),
        PageSection("Data and split", tables=tuple(_make_split_tables(record))),
        PageSection("Settings", tables=(_make_settings_table(record),), is_open=False),
        PageSection("Versions and machine", record.faults, tables=(_make_machine_table(record),), is_open=False),
    )
    return Page(f"Run {record.name}", _describe_run(record), record.banner, keep_filled(sections))


def _explain_cases(record: RunRecord) -> str:
    network = (
        "" if record.used is None else f", predicted by the {record.used.net} of best.pt (step {record.used.step:,})"
    )
    text = f"Validation cases by Dice{network}. Errors: found in green, missed in blue, false in red"
    if record.config is None or record.config.data.num_classes < 3:
        return f"{text}. What is missed or false as a whole is drawn a pixel wider where it is rare, to be seen."
    values = record.config.data.label_values[1:] or range(1, record.config.data.num_classes)
    return f"{text}; foreground of a wrong class in yellow. Classes: {describe_class_colors([*map(str, values)])}."


def _describe_run(record: RunRecord) -> str:
    """Return what was trained on what, in one line."""
    config, split, parts = record.config, record.split, [str(record.run.path)]
    if config is not None:
        size = format_size(config.data.patch_size)
        parts += [config.method.name, config.network.name, f"{config.data.ndim}D patches of {size}", config.data.root]
    if config is not None and split is not None:
        parts.append(counted(len(split.labeled_ids(config.split.labels)), "labeled case"))
    return " · ".join(parts)


def _note_looks(record: RunRecord) -> tuple[str, ...]:
    shown, total = len(record.looks.steps), record.looks.total
    return (f"{shown} of the {total:,} looks at the networks are drawn, evenly spread.",) if shown < total - 1 else ()


def _make_score_tables(record: RunRecord) -> Iterator[Table]:
    """Yield the scores of the networks, and the trivial baselines on the same cases."""
    if record.final is None or record.used is None:
        yield from _make_probe_table(record)
        return
    used, subject = record.used, name_subject(record.used_scores or {})
    rows = []
    for network in sorted(_list_distinct(record), key=lambda network: network != used):
        own = summarize_network(network.score)
        rows.append(
            (
                f"{network.net}, {_SOURCES[network.source]}{_MARKS[network == used, network.collapsed]}",
                f"{network.step:,}",
                number(own["f1_macro"]),
                number(own["dice"]),
                number(own["margin"]),
                show_margin(own),
            )
        )
    columns = ("network", "step", f"F1{subject}", "mean Dice", "margin", "its 95 % interval")
    cases = counted(len(used.score.cases), "whole validation case")
    text = "Margin: F1 over that of predicting foreground everywhere, on the same cases. best.pt holds the one used."
    yield Table(f"Networks on {cases}", text, columns, tuple(rows))
    summary = used.score.summarize()
    trivial, mean = summary["trivial"], summary["mean"]
    baselines = (
        ("the network that is used", number(summary["pooled"]["f1_macro"]), number(mean["dice"])),
        ("foreground everywhere", number(trivial["all_positive"]), UNKNOWN),
        ("random at the base rate", number(trivial["base_rate_random"]), UNKNOWN),
        ("nothing", number(trivial["all_negative"]), number(mean["predict_nothing"])),
    )
    yield Table("Beside trivial predictors", "", ("predictor", f"F1{subject}", "mean Dice"), baselines)
    if "classes" in summary:
        absent = "; ".join(describe_absent(summary))
        yield Table("Classes", absent, ("class", "cases with it", "F1", "precision", "recall"), tuple(
            (
                str(row["label"]),
                str(row["n_positives"]),
                *(number(row["pooled"][name]) for name in ("dice", "precision", "recall")),
            )
            for row in summary["classes"]
        ))  # fmt: skip
    if "objects" in summary:
        yield to_table("Objects", make_object_rows(summary["objects"]))


def _make_calibration_section(record: RunRecord) -> PageSection:
    """Return the reliability of the network that is used, as its scores have it, and what `calibrate` has stored."""
    if record.used is None:
        return PageSection("Calibration")
    drawing, stored = draw_reliability(record.used), _read_calibration(record)
    missing = f"Reliability was not measured: `ssl-seg calibrate {quote(record.run.path)} --figure FILE` measures it."
    return PageSection(
        "Calibration",
        () if drawing else (missing,),
        drawings=(drawing,) if drawing else (),
        tables=(make_facts("Stored by calibrate", {record.used.net: stored}),) if stored else (),
    )


def _list_distinct(record: RunRecord) -> list[NetworkScore]:
    """Return the networks that were scored; of those with equal scores and steps the first."""
    kept: list[NetworkScore] = []
    for network in () if record.final is None else record.final.networks:
        if not any((k.net, k.step, k.score) == (network.net, network.step, network.score) for k in kept):
            kept.append(network)
    return kept


def _make_probe_table(record: RunRecord) -> Iterator[Table]:
    looks = record.looks
    name, trivial, title = shown_f1(looks.values)
    best = {net: looks.last(f"val/{net}/f1_best") if name == "f1" else None for net in NETS}
    rows = [(net, number(f1), number(best[net])) for net in NETS if (f1 := looks.last(f"val/{net}/{name}")) is not None]
    if not rows:
        return
    rows.append(("foreground everywhere", number(looks.last(f"val/{trivial}")), UNKNOWN))
    patches = looks.last("val/patches")
    on = "the validation probe" if patches is None else f"{patches:.0f} patches of the validation probe"
    text = "Preliminary: whole cases are scored when the run ends."
    yield Table(f"At step {looks.steps[-1]:,}, on {on}", text, ("network", title, "at its best threshold"), tuple(rows))


def _read_calibration(record: RunRecord) -> str:
    """Return what `calibrate` has stored for the network that is used, in words."""
    path = record.run.best.with_suffix(".calibration.json")
    if record.used is None or not path.is_file():
        return ""
    from ssl_seg.inference.calibration import read_calibration

    try:
        found = read_calibration(record.run.best, record.used.net)
    except SslSegError as error:
        return str(error)
    if found is None:
        return f"{path.name} belongs to another state of best.pt"
    return f"{found.describe()}. evaluate and predict use it; the scores of this page are without it"


def _make_case_section(record: RunRecord) -> PageSection:
    """Return the table of the validation cases, the worst first, and their foreground shares."""
    if record.used is None:
        return PageSection("All validation cases")
    summary = record.used.score.summarize()
    shares = [(c.overlap.prevalence, c.overlap.prevalence_pred) for c in record.used.score.cases]
    rows = sorted(zip(summary["cases"], shares, strict=True), key=lambda pair: float(pair[0]["dice"]))
    notes: tuple[str, ...] = ()
    if len(rows) > MOST_CASES:
        half = MOST_CASES // 2
        notes = (f"The worst and the best {half} of {len(rows):,} cases; scores.json has all.",)
        rows = [*rows[:half], *rows[-half:]]
    labels = [row["label"] for row in summary.get("classes", ())]
    if len(labels) > MOST_CLASSES:
        notes = (*notes, f"Each class of each case is in scores.json: {len(labels)} columns are too many for a table.")
        labels = []
    columns = ("case", "Dice", "IoU", "precision", "recall", "true foreground", "predicted")
    table = Table(
        "",
        "Click a title to sort.",
        (*columns, *(f"Dice of class {label}" for label in labels)),
        tuple(
            (
                row["id"],
                *(number(row[name]) for name in ("dice", "iou", "precision", "recall")),
                *map(share, pair),
                *map(number, row.get("classes", ())[: len(labels)]),
            )
            for row, pair in rows
        ),
    )
    drawn: tuple[Drawing, ...] = (draw_foreground_scatter(shares),) if len(shares) > 1 else ()
    return PageSection("All validation cases", notes, drawn, (table,))


def _make_event_table(record: RunRecord) -> Table:
    rows = [
        (
            str(event["step"]) if isinstance(event.get("step"), int) else "",
            str(event.get("time", "")).replace("T", " ")[:19],
            str(event.get("event", "")),
            _describe_event(event),
        )
        for event in record.events
    ]
    text = ""
    if len(rows) > MOST_EVENTS:
        half = MOST_EVENTS // 2
        text = f"The first and the last {half} of {len(rows):,} events; events.jsonl has all."
        rows = [*rows[:half], *rows[-half:]]
    return Table("", text, ("step", "time (UTC)", "event", "details"), tuple(rows))


def _describe_event(event: Mapping[str, Any]) -> str:
    """Return the short values of an event."""
    if event.get("event") == "gate":
        return str(event.get("text", ""))
    parts = []
    for name, value in event.items():
        if (
            name in _SKIPPED
            or (name == "step" and isinstance(value, int))
            or value is None
            or value in ("", [])
            or isinstance(value, Mapping)
        ):
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        parts.append(f"{name} {figure(shown) if isinstance(shown, float) else shown}")
    return "; ".join(parts)


def _make_split_tables(record: RunRecord) -> Iterator[Table]:
    split, config = record.split, record.config
    if split is None:
        return
    labels = None if config is None else config.split.labels
    pool = split.fractions[1.0]
    labeled = pool if labels is None else split.labeled_ids(labels)
    facts = {
        "labeled, trained with": f"{len(labeled)} of {len(pool)} in the pool",
        "unlabeled, trained with": "" if labels is None else str(len(split.pool_ids(labels))),
        "validation": str(len(split.val)),
        "test (sealed)": str(len(split.test)),
        "fold": "" if split.fold is None else f"{split.fold} of {split.folds}",
        "groups": f"{len(set(split.groups.values()))}, none in two parts" if split.groups else "",
        "seed": str(split.seed),
        "fingerprint": split.fingerprint,
        "notes": "; ".join(split.notes),
    }
    yield make_facts("Split", facts)
    yield make_facts("Seal of the test list", {"opened": _describe_openings(record)} if split.test else {})


def _describe_openings(record: RunRecord) -> str:
    """Return how often cases of the test list were scored, by the ledger beside the data and the events of the run."""
    if record.split is None:
        return ""
    homes = () if record.config is None else filter(None, (find_home(record.config.data.root),))
    ledger = Ledger(data=tuple(homes), checkpoints=(record.run.best,))
    number = len(find_openings(record.split.image_contents(record.split.test), ledger))
    own = [event for event in record.events if event.get("event") == "test_opened"]
    times = name_examples([f"{str(e.get('time'))[:16].replace('T', ' ')} by {e.get('by')}" for e in own], 5)
    return counted(number, "time") + (f", with a network of this run: {times}" if own else "")


def _make_settings_table(record: RunRecord) -> Table:
    text = "Given: set by a file, an option or a parent, and not the default."
    return Table("", text, ("setting", "value", "origin"), record.settings)


def _make_machine_table(record: RunRecord) -> Table:
    environment, looks = record.environment, record.looks
    runtime = find_last(record.events, "runtime")
    packages, commits = environment.get("packages") or {}, environment.get("commits") or {}
    seconds, memory = looks.last("train/seconds_per_step"), looks.last("machine/memory_gib")
    parameters = runtime.get("parameters")
    facts = {
        "command": " ".join(quote(str(part)) for part in environment.get("command") or ()),
        "begun": str(environment.get("time", "")),
        "took": _describe_duration(record),
        "seconds a step": "" if seconds is None else f"{figure(seconds, 3)} (last epoch)",
        "memory": "" if memory is None else f"{number(memory, 2)} GiB",
        "parameters": "" if parameters is None else f"{parameters:,}",
        "precision": str(runtime.get("precision", "")),
        "machine": ", ".join(filter(None, (environment.get("platform"), _count(environment.get("cpus"), "CPUs")))),
        "Python": str(environment.get("python", "")),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "commits": ", ".join(
            f"{name}: {own.get('commit', '')[:12]}{' (changed since)' if own.get('changed') else ''}"
            for name, own in commits.items()
        ),
    }
    return make_facts("", facts)


def _count(value: Any, what: str) -> str:
    return "" if value is None else f"{value} {what}"


def _describe_duration(record: RunRecord) -> str:
    """Return the time from the first event to the last one of the run itself."""
    times = [e.get("time") for e in record.events if e.get("event") != "test_opened"]
    try:
        first, last = (datetime.fromisoformat(str(time)) for time in (times[0], times[-1]))
        return str(last - first)
    except (IndexError, ValueError, TypeError):
        return ""
