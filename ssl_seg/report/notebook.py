"""What the Python functions return: typed results that print as a short report, as a notebook shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ssl_seg.data.findings import describe_finding
from ssl_seg.engine.machine import own_defaults
from ssl_seg.errors import ConfigError, DataError, RunDirError, counted, did_you_mean, name_examples, quote
from ssl_seg.report.score_cells import describe_absent, show_difference, show_margin
from ssl_seg.run.gates import describe_targets

if TYPE_CHECKING:
    from ssl_seg.data.audit.doctor import Audit
    from ssl_seg.monitor.findings import Verdict
    from ssl_seg.results.evaluation import EvaluateRequest
    from ssl_seg.results.mask_making import PredictRequest

TextRow = Mapping[str, str]


@dataclass(frozen=True, repr=False)
class Picture:
    """A picture that a notebook shows where it is the result of a cell."""

    png: bytes

    def save(self, path: Path | str) -> Path:
        """Write it as a PNG file, which must not be there.

        Raises:
            DataError: for another suffix, or a file that exists or cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise DataError(f"{path}: a picture is written as .png")
        try:
            with path.open("xb") as file:
                file.write(self.png)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from error
        return path

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"Picture of {len(self.png):,} bytes: a notebook shows it, save(path) writes it"


def _make_picture(draw: Callable[[Path], object]) -> Picture:
    """Return what a function writes to a PNG file."""
    with TemporaryDirectory(prefix="ssl_seg_") as folder:
        draw(file := Path(folder) / "picture.png")
        return Picture(file.read_bytes())


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A run that has ended, or was interrupted; it stands for its directory where a path is asked for."""

    path: Path
    """The run directory: ``evaluate``, ``predict`` and ``bootstrap=`` take it."""
    ending: str
    """``finished``, ``stopped_early``, ``interrupted``, ``collapsed``, or ``refused`` by a gate."""
    steps: int
    verdict: Verdict
    """What the monitor said last: ``level``, ``findings``, ``action``."""
    scores: Mapping[str, Any]
    """Scores of best.pt on the whole validation cases; empty where the run was interrupted."""

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint."""
        return self.path / "checkpoints" / "best.pt"

    @own_defaults()
    def plot(self) -> Picture:
        """Return the F1 of both networks on the validation probe over the steps; ``report.html`` has all curves.

        Raises:
            RunDirError: where the run directory has gone, or holds no look.
        """
        from ssl_seg.report.figures import to_png
        from ssl_seg.report.run_figures import plot_f1
        from ssl_seg.report.run_record import read_run

        record = read_run(self.path)
        if not len(record.looks.steps):
            raise RunDirError(f"{self.path} has no look at its networks yet")
        return Picture(to_png(plot_f1(record)))

    def __repr__(self) -> str:
        lines = [f"TrainedRun {self.path}: {self.ending} after {counted(self.steps, 'step')}"]
        if self.scores:
            used = self.scores["selected"]["net"]
            lines += align_columns([_make_row(net, self.scores, net == used) for net in ("student", "teacher")])
        lines += _describe_verdict(self.verdict)
        return "\n".join([*lines, f"next: {self._advise()}"])

    def _advise(self) -> str:
        from ssl_seg.report.run_record import read_run

        path = repr(str(self.path))
        if self.ending == "interrupted":
            return f"ssl_seg.train(resume={path})"
        try:
            banner = read_run(self.path).banner
        except RunDirError:
            return "nothing: the run directory has gone"
        if banner.state != "healthy":
            return banner.commands[0]
        return f'ssl_seg.evaluate({path}), ssl_seg.predict({path}, "images", "masks")'


def load_run(path: Path | str | PathLike[str]) -> TrainedRun:
    """Return the run in a directory, as ``train`` returned it; its findings have the figures of when they were new.

    Raises:
        RunDirError: for a folder that holds no run that has ended or was interrupted.
    """
    from ssl_seg.monitor.findings import RuleFinding, Verdict
    from ssl_seg.report.run_record import read_run
    from ssl_seg.run.directory import find_last
    from ssl_seg.run.final_scores import describe_for_checkpoint

    record = read_run(path := Path(path))
    ending, final = record.ending, record.final
    if ending is None:
        raise RunDirError(f"{path}: this run is still training, or was killed: ssl-seg train --resume {quote(path)}")
    told = find_last(record.events, "verdict")
    verdict = Verdict(tuple(RuleFinding(**f) for f in told["findings"]), told["action"]) if told else Verdict()
    scores = describe_for_checkpoint(final, final.used.source) if final is not None else {}
    return TrainedRun(path, str(ending["event"]), record.step, verdict, scores)


@dataclass(frozen=True, repr=False)
class PretrainedRun:
    """A pre-training that has ended, or was interrupted; it stands for its directory where a path is asked for."""

    path: Path
    """The run directory: ``train(pretrained=...)`` takes it."""
    ending: str
    steps: int
    verdict: Verdict
    result: Mapping[str, float]
    """``error`` on hidden voxels, ``baseline`` of the mean of what is visible, ``gain``; empty where interrupted."""

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        path = repr(str(self.path))
        lines = [f"PretrainedRun {self.path}: {self.ending} after {counted(self.steps, 'step')}"]
        if self.result:
            error, baseline, gain = (self.result[name] for name in ("error", "baseline", "gain"))
            lines.append(f"error on hidden voxels {error:.3f}, mean of the visible image {baseline:.3f}: {gain:+.1%}")
        lines += _describe_verdict(self.verdict)
        resume = self.ending == "interrupted"
        return "\n".join([*lines, f"next: ssl_seg.{'pretrain(resume' if resume else 'train(pretrained'}={path})"])


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of one or several networks on the same cases."""

    record: Mapping[str, Any]
    """All of it as plain types, as `ssl-seg evaluate --json` prints it."""
    request: EvaluateRequest
    """What was asked for."""
    notes: tuple[str, ...] = ()
    """What was left out, and warnings."""

    @property
    def f1(self) -> float:
        """Pooled F1 of the headline network, the mean of several classes."""
        return float(self.record["pooled"]["f1_macro"])

    @property
    def margin(self) -> float:
        """F1 over that of predicting foreground everywhere, on the same cases."""
        return float(self.record["trivial"]["margin"])

    @property
    def cases(self) -> Sequence[Mapping[str, Any]]:
        """A row for each case: id, dice, iou, precision, recall, ..."""
        return tuple(self.record["cases"])

    @property
    def networks(self) -> dict[str, Mapping[str, Any]]:
        """The scores of each network, by its name; of several checkpoints by path and name."""
        if "rows" in self.record:
            return {f"{row['checkpoint']}: {row['which']}": row for row in self.record["rows"]}
        return dict(self.record["nets"])

    @own_defaults()
    def show(self, case: str) -> Picture:
        """Return a case, predicted anew: input, truth, probability, and where the prediction is right and wrong.

        Args:
            case: its id, as in ``cases``.

        Raises:
            ConfigError: for a case that was not scored, or scores of several checkpoints.
            SslSegError: where the checkpoint or the data have gone.
        """
        from ssl_seg.report.case_pictures import draw_cases

        rows = {str(row["id"]): row for row in self.cases}
        case = str(case)
        if case not in rows:
            known = name_examples(rows)
            raise ConfigError(f"case '{case}' is none of those that were scored, {known}{did_you_mean(case, rows)}")
        if "rows" in self.record or "folds" in self.record:
            raise ConfigError("a case is shown of the scores of one checkpoint: evaluate one of them")
        request, net = self.request, str(self.record["which"])
        return _make_picture(lambda path: draw_cases(request, [rows[case]], net, path))

    def __repr__(self) -> str:
        record = self.record
        lines = [f"Evaluation of {record['checkpoint']} on {record['part']}, {counted(len(record['cases']), 'case')}"]
        lines += align_columns(
            [
                {
                    "network": name,
                    "F1": f"{row['pooled']['f1_macro']:.3f}",
                    "mean Dice": f"{row['mean']['dice']:.3f}",
                    "all-positive F1": f"{row['trivial']['all_positive']:.3f}",
                    **_show_margin(row["trivial"]),
                    **(show_difference(row["difference"], "to the first") if "difference" in row else {}),
                    **({"": "used" if name == record["which"] else ""} if "rows" not in record else {}),
                }
                for name, row in self.networks.items()
            ]
        )
        if record["of"] not in ("foreground", "any foreground"):
            lines.append(f"F1: {record['of']}")
        lines += describe_absent(record)
        lines += [
            f"{name}: {describe_targets(row['targets'])}" for name, row in self.networks.items() if "targets" in row
        ]
        if record["sealed_cases"]:
            lines.append(f"sealed test cases, opened {counted(record['test_openings'], 'time')}")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, repr=False)
class PredictedMasks:
    """The masks that were written."""

    folder: Path
    """Where they are; the file, for a single mask with a name of its own."""
    masks: tuple[Path, ...]
    """Those written by this call; masks that were there already are kept, and are not among them."""
    request: PredictRequest
    """What was asked for."""
    notes: tuple[str, ...] = ()

    @own_defaults()
    def show(self) -> Picture:
        """Return five of the images with their masks, from the least to the most foreground.

        Raises:
            DataError: where no mask is there any more, or an image has gone.
        """
        from ssl_seg.report.mask_pictures import draw_masks

        request = self.request
        return _make_picture(lambda path: draw_masks(request, path))

    def __repr__(self) -> str:
        return "\n".join([f"PredictedMasks: wrote {len(self.masks)} to {self.folder}", *self.notes])


@dataclass(frozen=True, repr=False)
class DataAudit:
    """What a look at all images and masks of a data set has shown."""

    audit: Audit
    """``findings``, faults first; ``summary`` of plain types."""

    @property
    def ok(self) -> bool:
        """Whether there is no fault; warnings may be there."""
        return not self.audit.summary["faults"]

    def __repr__(self) -> str:
        summary = self.audit.summary
        counts = summary["counts"]
        head = f"DataAudit {summary['root']}: layout {summary['layout']}, {counted(counts['images'], 'image')}, "
        lines = [f"{head}{counts['labeled']} with a mask, {counted(summary['faults'], 'fault')}"]
        lines += [f"note: {note}" for note in summary["notes"]]
        lines += [f"{finding.level}: {describe_finding(finding)}" for finding in self.audit.findings]
        advice = f"ssl_seg.train({summary['root']!r})" if self.ok else "fix the faults"
        return "\n".join([*lines, f"next: {advice}"])


def align_columns(rows: Sequence[TextRow]) -> list[str]:
    """Return rows with the same columns as lines of text, the first column flush left."""
    columns = [[name, *(row[name] for row in rows)] for name in rows[0]]
    widths = [max(map(len, column)) for column in columns]
    return [_format_line(cells, widths) for cells in zip(*columns, strict=True)]


def _format_line(cells: Iterable[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(["", first, *others]).rstrip()


def _make_row(net: str, scores: Mapping[str, Any], is_used: bool) -> TextRow:
    return {
        "network": net,
        "F1": f"{scores[net]['f1_macro']:.3f}",
        "all-positive F1": f"{scores['trivial_f1']:.3f}",
        **_show_margin(scores[net]),
        "": "used" if is_used else "",
    }


def _show_margin(scores: Mapping[str, Any]) -> TextRow:
    return {"margin": f"{scores['margin']:.3f}", "95 % interval": show_margin(scores)}


def _describe_verdict(verdict: Verdict) -> list[str]:
    lines = [f"verdict: {' '.join([verdict.level, ', '.join(verdict.codes)]).rstrip()}"]
    if verdict.findings:
        lines += [f"  {verdict.findings[0].message}", f"  try: {verdict.action}"]
    return lines
