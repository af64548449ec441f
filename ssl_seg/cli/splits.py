"""``ssl-seg split make | split check``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssl_seg.cli.console import announce, show, track
from ssl_seg.cli.data_settings import GROUPS, LAYOUT, SET, UNLABELED, read_catalog_settings
from ssl_seg.cli.places import check_data, check_figure

if TYPE_CHECKING:
    from ssl_seg.data.catalog import Catalog
    from ssl_seg.data.findings import Finding
    from ssl_seg.data.splits.statistics import SetMeasures

NearCopies = Literal["keep_together", "ignore"]
_NEAR_COPIES = typer.Option(
    "--near-copies",
    help="keep_together: images that are nearly the same belong in one part; ignore: they may be in several.",
)


def split_make(
    data: Annotated[str, typer.Option(help="Folder or manifest, as for train; or synthetic:particles|sheets.")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="Labeled shares (0.01 0.10 1.0) or numbers of cases (2 8), smaller ones nested in larger."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.", min=0)] = 0,
    layout: Annotated[str, LAYOUT] = "auto",
    groups: Annotated[Path | None, GROUPS] = None,
    unlabeled: Annotated[Path | None, UNLABELED] = None,
    val: Annotated[
        float | None, typer.Option(help="Share of the labeled cases for validation.", show_default="val/, or 0.15")
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(help="Share of the labeled cases sealed for the test.", show_default="test/, or 0.20"),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Write one file a fold of a cross-validation; the test list is the same in all.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; folds add _fold0 ... to its name.", show_default="data_splits/NAME_seedSEED.yaml"
        ),
    ] = None,
    near_copies: Annotated[NearCopies, _NEAR_COPIES] = "keep_together",
    set_: Annotated[list[str] | None, SET] = None,
) -> None:
    """Write a nested split: 1 % in 10 % in full, validation and test apart, groups intact, stratified by foreground."""
    from ssl_seg.cli.run_settings import parse_labels
    from ssl_seg.config.data import format_label_amount
    from ssl_seg.data.splits.files import save_folds, save_split
    from ssl_seg.data.splits.quality import check_split
    from ssl_seg.data.splits.split import make_folds, make_split
    from ssl_seg.errors import ConfigError
    from ssl_seg.run.seal import register_seal

    if more and not labels:
        raise ConfigError(f"{more[0]} is not expected here: give fractions as --labels 0.01 0.10 1.0")
    if folds is not None and val is not None:
        raise ConfigError(f"--val {val:g} and --folds {folds} exclude each other: each fold is the validation set once")
    wanted = parse_labels([*(labels or []), *(more or [])]) or (0.01, 0.10)
    catalog = _open_catalog(data, layout, groups, unlabeled, set_)
    path = out or Path("data_splits") / f"{Path(catalog.root).name.replace(':', '-')}_seed{seed}.yaml"
    if folds is None:
        shares = {"val_fraction": val, "test_fraction": test}
        splits = [make_split(catalog, wanted, seed=seed, near_copies=near_copies, **shares)]
        save_split(splits[0], path)
        paths = [path]
    else:
        splits = [*make_folds(catalog, wanted, folds, seed=seed, test_fraction=test, near_copies=near_copies)]
        paths = save_folds(splits, path)
    show(f"{catalog.root}: layout {catalog.layout}, {len(catalog.cases)} cases")
    rounded = [note for split in splits for labels in wanted for note in split.note_rounding(labels)]
    for text in dict.fromkeys([*catalog.notes, *(note for split in splits for note in split.notes), *rounded]):
        show(f"note: {text}")
    for split, place in zip(splits, paths, strict=True):
        listed = ", ".join(f"{format_label_amount(f)}: {len(ids)}" for f, ids in sorted(split.fractions.items()))
        show(
            f"labels {listed} cases; unlabeled {len(split.unlabeled)}, validation {len(split.val)}, "
            f"test {len(split.test)} (sealed)"
        )
        show(f"wrote {place}, fingerprint {split.fingerprint}")
        register_seal(split, catalog)
        _print_findings([f for f in check_split(split, catalog, near_copies=near_copies) if f.level != "info"])


def split_check(
    split: Annotated[Path, typer.Argument(help="Split file.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Folder or manifest, to check images, foreground and classes too.")
    ] = None,
    layout: Annotated[str, LAYOUT] = "auto",
    groups: Annotated[Path | None, GROUPS] = None,
    unlabeled: Annotated[Path | None, UNLABELED] = None,
    near_copies: Annotated[NearCopies, _NEAR_COPIES] = "keep_together",
    set_: Annotated[list[str] | None, SET] = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture that compares the sets; needs --data.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Check a split: nestedness, leaks, copies, and each set's bias against random splits. Exit code 2 on a fault."""
    from ssl_seg.data.findings import findings_to_dict
    from ssl_seg.data.splits.files import load_split
    from ssl_seg.data.splits.quality import check_split, summarize_split
    from ssl_seg.data.splits.statistics import measure_split

    loaded = load_split(split)
    check_figure(figure)
    catalog = None if data is None else _open_catalog(data, layout, groups, unlabeled, set_)
    measures = () if catalog is None else measure_split(loaded, catalog)
    findings = check_split(loaded, catalog, measures, near_copies=near_copies)
    summary = summarize_split(loaded, findings, measures)
    if as_json:
        typer.echo(json.dumps(findings_to_dict(findings, summary), indent=2))
    else:
        if measures:
            _print_measures(str(split), measures)
        _print_findings(findings)
        faults = summary["faults"]
        show(f"{split}: {'ok' if not faults else f'{faults} fault(s)'}, fingerprint {loaded.fingerprint}")
    if figure is not None:
        from ssl_seg.report.split_figure import plot_split

        plot_split(measures, figure)
        show(f"wrote {figure}", err=as_json)
    if summary["faults"]:
        raise typer.Exit(2)


def _print_findings(findings: Sequence[Finding]) -> None:
    from ssl_seg.data.findings import describe_finding

    for level in ("fault", "warn", "info"):
        for finding in findings:
            if finding.level == level:
                show(f"{level}: {describe_finding(finding)}")


def _print_measures(title: str, measures: Sequence[SetMeasures]) -> None:
    from ssl_seg.cli.console import print_table

    columns = [
        "set",
        "cases",
        "eff. groups",
        "positive",
        "foreground",
        "95 % interval",
        "random draws",
        "percentile",
        "KS",
    ]
    rows = []
    for m in measures:
        c = m.foreground
        interval = "-" if c.low is None else f"{c.low:.3f} .. {c.high:.3f}"
        rows.append(
            [
                m.name,
                str(len(m.ids)),
                f"{m.effective_groups:.1f}",
                str(m.positives),
                f"{c.mean:.3f}",
                interval,
                f"{c.band_low:.3f} .. {c.band_high:.3f}",
                f"{c.percentile:.1f}",
                f"{c.ks:.2f}",
            ]
        )
    print_table(f"{title}: foreground, beside random draws of each size", columns, rows)


def _open_catalog(
    data: str, layout: str, groups: Path | None, unlabeled: Path | None, overrides: list[str] | None
) -> Catalog:
    from ssl_seg.data.catalog import open_catalog

    check_data(data)
    settings = read_catalog_settings(overrides)
    announce(f"reading the cases of {data}")
    return open_catalog(
        data,
        groups=groups,
        layout=layout,
        unlabeled=unlabeled,
        track=lambda items, total: track(items, total, "reading cases"),
        **settings,
    )
