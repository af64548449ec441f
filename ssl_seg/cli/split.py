"""``ssl-seg split make | split check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import announce, format_command, print_json, show, track
from ssl_seg.cli.paths import check_data, check_new_file, check_new_page
from ssl_seg.cli.tables import print_findings, print_rows
from ssl_seg.errors import counted
from ssl_seg.report.check_tables import make_set_rows

if TYPE_CHECKING:
    from ssl_seg.data.catalog import Catalog

NearCopiesOption = Annotated[
    Literal["keep_together", "ignore"],
    typer.Option(
        "--near-copies",
        help="keep_together: nearly equal images belong in one part; ignore: they may be in several.",
    ),
]


def split_make(
    data: Annotated[str, typer.Option(help="Folder or manifest, as for train; or synthetic:particles|sheets.")],
    labels: o.LabelList = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.", min=0)] = 0,
    layout: o.LayoutName = None,
    groups: o.Groups = None,
    unlabeled: o.Unlabeled = None,
    val: Annotated[
        float | None, typer.Option(help="Share of the labeled cases for validation.", show_default="val/, or 0.15")
    ] = None,
    test: Annotated[
        float | None,
        typer.Option(help="Share of the labeled cases to seal for the test.", show_default="test/, or 0.20"),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Write one file per fold of a cross-validation, all with the same test list.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; folds add _fold0 ... to its name.", show_default="data_splits/NAME_seedSEED.yaml"
        ),
    ] = None,
    near_copies: NearCopiesOption = "keep_together",
    set_: o.DataSet = None,
) -> None:
    """Write a nested split: 1 % in 10 % in full, validation and test apart, groups intact, stratified by foreground."""
    from ssl_seg.config.data import format_label_amount
    from ssl_seg.data.splits.checks import check_split
    from ssl_seg.data.splits.files import save_folds, save_split
    from ssl_seg.data.splits.split import make_folds, make_split
    from ssl_seg.run.seal import register_seal

    wanted = o.parse_labels(labels or ()) or (0.01, 0.10)
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
    show(f"{catalog.root}: layout {catalog.layout}, {counted(len(catalog.cases), 'case')}")
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
        print_findings([f for f in check_split(split, catalog, near_copies=near_copies) if f.level != "info"])


def split_check(
    split: Annotated[Path, typer.Argument(help="Split file.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Folder or manifest; also check images, foreground and classes.")
    ] = None,
    layout: o.LayoutName = None,
    groups: o.Groups = None,
    unlabeled: o.Unlabeled = None,
    near_copies: NearCopiesOption = "keep_together",
    set_: o.DataSet = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture that compares the sets; needs --data.")] = None,
    report: o.ReportPage = None,
    as_json: o.AsJson = False,
) -> None:
    """Check a split: nestedness, leaks, copies, and each set's bias against random splits. Exit code 2 on a fault."""
    from ssl_seg.data.findings import findings_to_dict
    from ssl_seg.data.splits.checks import check_split
    from ssl_seg.data.splits.files import load_split
    from ssl_seg.data.splits.split import add_new_masks, note_unlisted
    from ssl_seg.data.splits.statistics import measure_split, summarize_split

    loaded = load_split(split)
    check_new_file(figure)
    check_new_page(report, "--report")
    catalog = None if data is None else _open_catalog(data, layout, groups, unlabeled, set_)
    before = loaded.notes
    if catalog is not None:
        loaded = note_unlisted(add_new_masks(loaded, catalog), catalog)
    measures = () if catalog is None else measure_split(loaded, catalog)
    findings = check_split(loaded, catalog, measures, near_copies=near_copies)
    summary = summarize_split(loaded, findings, measures)
    if as_json:
        print_json(findings_to_dict(findings, summary))
    else:
        if measures:
            print_rows(f"{split}: foreground, beside random draws of each size", make_set_rows(measures))
        for text in loaded.notes:
            if text not in before:
                show(f"note: {text}")
        print_findings(findings)
        faults = summary["faults"]
        show(f"{split}: {counted(faults, 'fault') if faults else 'ok'}, fingerprint {loaded.fingerprint}")
    if figure is not None:
        from ssl_seg.report.split_figure import plot_split

        plot_split(measures, figure)
        show(f"wrote {figure}", err=as_json)
    if report is not None:
        from ssl_seg.report.check_pages import make_split_page
        from ssl_seg.report.page import write_page

        options = {"--layout": layout, "--groups": groups, "--unlabeled": unlabeled}
        ignored = [] if near_copies == "keep_together" else [f"split.near_copies={near_copies}"]
        train = {"--data": data, "--split": split, **options, "--set": [*(set_ or ()), *ignored]}
        new: dict[str, object] = {
            "--data": data,
            "--labels": sorted(loaded.fractions),
            "--seed": loaded.seed,
            "--folds": loaded.folds,
        }
        new |= {**options, "--set": set_, "--near-copies": near_copies if ignored else None}
        new |= {"--out": split.with_stem(f"{split.stem}_new")}
        commands = format_command(["train"], train), format_command(["split", "make"], new)
        page = make_split_page(str(split), loaded, measures, findings, *commands)
        show(f"wrote {write_page(page, report)}", err=as_json)
    if summary["faults"]:
        raise typer.Exit(2)


def _open_catalog(
    data: str, layout: str | None, groups: Path | None, unlabeled: Path | None, overrides: list[str] | None
) -> Catalog:
    from ssl_seg.cli.settings import parse_overrides
    from ssl_seg.data.catalog import open_catalog
    from ssl_seg.data.settings import make_catalog_settings

    check_data(data)
    settings = make_catalog_settings(parse_overrides(overrides), layout, groups, unlabeled)
    announce(f"reading the cases of {data}")
    return open_catalog(data, settings, track=lambda items, total: track(items, total, "reading cases"))
