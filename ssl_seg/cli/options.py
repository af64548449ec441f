"""Options that several commands share, each a type for a parameter, and the parsers of numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from ssl_seg.errors import ConfigError

NumberRule = tuple[str, Callable[[float], bool]]
"""What a number must be, and the test of it."""

POSITIVE: NumberRule = ("a number above 0", lambda value: value > 0)
NOT_NEGATIVE: NumberRule = ("0 or a larger number", lambda value: value >= 0)
PROBABILITY: NumberRule = ("a number above 0 and below 1", lambda value: 0 < value < 1)
FROM_0_TO_1: NumberRule = ("a number from 0 to 1", lambda value: 0 <= value <= 1)
FROM_0_TO_0_9: NumberRule = ("a number from 0 to 0.9", lambda value: 0 <= value <= 0.9)
FROM_1: NumberRule = ("1 or a larger number", lambda value: value >= 1)


def number_parser(option: str, rule: NumberRule, example: str) -> Callable[[str | float], float]:
    """Return a parser of one finite number, for ``typer.Option(parser=...)``.

    Args:
        option: its name, for the error.
        rule: what the number must be.
        example: what to write instead.
    """

    def parse(text: str | float) -> float:
        value = _to_number(str(text))
        if value is None or not rule[1](value):
            raise ConfigError(f"{option}: '{text}' must be {rule[0]}; write {option} {example}")
        return value

    parse.__name__ = "number"  # which the help shows
    return parse


def parse_sizes(option: str, text: str, example: str) -> tuple[float, ...]:
    """Return the two or three numbers above 0 of ``2.5,1,1``.

    Raises:
        ConfigError: names the first part that is wrong.
    """
    parse = number_parser(option, POSITIVE, example)
    values = tuple(parse(part) for part in split_words([text]))
    if len(values) not in (2, 3):
        raise ConfigError(f"{option}: '{text}' must be 2 or 3 numbers, each {POSITIVE[0]}; write {option} {example}")
    return values


SEVERAL_VALUES = ("--labels", "--seeds")
"""Options that take several numbers, separated by spaces or commas."""


def split_words(texts: Sequence[str]) -> list[str]:
    """Return the words of ``a b``, ``a,b``, and of what mixes both."""
    joined = re.sub(r"(?<=[^\s,])\s+(?=[^\s,])", ",", " ".join(texts))
    return [part.strip() for part in joined.split(",")]


def _to_number(text: str) -> float | None:
    """Return a finite number written with digits of ASCII, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and text.isascii() and "_" not in text else None


def parse_labels(texts: Sequence[str]) -> tuple[float, ...]:
    """Return the amounts of labels of ``0.01 0.10``, ``0.01,0.10`` and what mixes both; 8 is a number of cases.

    Raises:
        ConfigError: for what is no amount of labels; see ``check_label_amount``.
    """
    parse = number_parser("--labels", POSITIVE, "0.01 0.10 1.0")
    return tuple(_check_labels(parse(word), word) for word in split_words(texts)) if texts else ()


def join_values(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which ``--labels 0.01 0.10`` is one word, and likewise ``--seeds 0 1``.

    Click gives an option the one word that follows it.
    """
    joined: list[str] = []
    option = ""
    for word in arguments:
        is_value = re.fullmatch(r"[\d.,%]+", word) is not None
        if option in SEVERAL_VALUES and is_value and joined[-1] != option:
            joined[-1] += f" {word}"
        else:
            joined.append(word)
            option = option if is_value else word.partition("=")[0]
    return joined


def parse_label_amount(text: str) -> float:
    """Return the amount of labels of an option that takes one.

    Raises:
        ConfigError: for what is no amount of labels.
    """
    return _check_labels(number_parser("--labels", POSITIVE, "0.10")(text), text)


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``--seeds 0,1,2``.

    Raises:
        ConfigError: for what is no whole number.
    """
    if strangers := [word for word in split_words([text]) if not (word.isascii() and word.isdigit())]:
        raise ConfigError(f"--seeds {text}: '{strangers[0]}' is not a whole number of 0 or more, as in --seeds 0,1,2")
    return [int(word) for word in split_words([text])]


def _check_labels(value: float, text: str) -> float:
    from ssl_seg.config.data import check_label_amount

    try:
        return check_label_amount(int(value) if text.isdigit() else value)
    except ValueError as error:
        raise ConfigError(f"--labels {text}: {error}") from None


Net = Literal["student", "teacher"]
DeviceKind = Literal["auto", "cpu", "cuda", "mps"]

WhichNet = Annotated[Net | None, typer.Option(help="Net to use.", show_default="the better one on validation")]
ConfigFile = Annotated[str | None, typer.Option(help="YAML file, or the name of a packaged configuration.")]
ConfigArgument = Annotated[
    str | None, typer.Argument(help="YAML file or packaged name, as for train.", show_default=False)
]
Data = Annotated[
    str | None,
    typer.Option(help="Folder or manifest; images without a mask are unlabeled. Or synthetic:particles|sheets."),
]
OtherData = Annotated[str | None, typer.Option(help="Folder; by default that of the training.")]
LayoutName = Annotated[
    str | None, typer.Option(help="Layout of the files; recognized unless given. `ssl-seg data layouts` lists them.")
]
OtherLayout = Annotated[
    str | None, typer.Option(help="Layout of the files of --data; recognized unless given.", show_default=False)
]
Groups = Annotated[
    Path | None,
    typer.Option(
        help="CSV with name,group; a group stays in one part of the split. none: no groups.",
        show_default="DATA/groups.csv, else what names such as patient03_slice07 show",
    ),
]
Unlabeled = Annotated[Path | None, typer.Option(help="Folder of further unlabeled images.")]
TaskName = Annotated[
    Literal["semantic", "instances"] | None,
    typer.Option(help="What to learn: classes of voxels, or objects that the masks number.", show_default="semantic"),
]
SplitFile = Annotated[
    Path | None,
    typer.Option(help="Split file from `ssl-seg split make`; without one, the split is made from the seed."),
]
LabelsOption = Annotated[
    float | None,
    typer.Option(
        help="Labeled share of the training pool (0.10; 1.0 is all), or a number of cases above 1 (8).",
        parser=parse_label_amount,
        metavar="SHARE|NUMBER",
    ),
]
LabelList = Annotated[
    list[str] | None,
    typer.Option(help="Shares of the training pool or numbers of cases, increasing: --labels 0.01 0.10 1.0"),
]
MethodName = Annotated[str | None, typer.Option(help="Learning method; `ssl-seg methods` lists them.")]
NetworkName = Annotated[str | None, typer.Option(help="Network; `ssl-seg networks` lists them.")]
EncoderName = Annotated[str | None, typer.Option(help="Encoder of encoder_unet: efficientnet_lite0, or a timm model.")]
EncoderWeights = Annotated[
    str | None, typer.Option(help="Initial weights of the encoder.", metavar="imagenet|none|FILE")
]
Pretrained = Annotated[
    Path | None, typer.Option(help="Start from the weights of this `ssl-seg pretrain` run, all but the head.")
]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps of each training.")]
Epochs = Annotated[int | None, typer.Option(help="Length in epochs of length.steps_per_epoch steps.", min=1)]
Rounds = Annotated[
    int,
    typer.Option(
        help="Rounds of self-training: the best network so far labels the unlabeled images; the next training starts "
        "from scratch and adds the half that earlier networks agree on most.",
        min=0,
        max=100,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Train for as many steps as fit into this time on this machine, final scores included; all rungs or folds "
        "take as many steps as the first."
    ),
]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
BatchSize = Annotated[int | None, typer.Option(help="Labeled patches in a batch.")]
RunSeed = Annotated[int | None, typer.Option(help="Seed of the training; the split has its own, split.seed.")]
AllowSplit = Annotated[
    bool, typer.Option("--allow-split", help="Train even though the split check finds a fault; the run records it.")
]
TrainAccelerator = Annotated[DeviceKind | None, typer.Option(help="Where to compute.", show_default="auto")]
Devices = Annotated[int | None, typer.Option(help="Processes on this node, one device each.")]
NumNodes = Annotated[int | None, typer.Option(help="Number of nodes, when started by torchrun or SLURM.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. optim.lr=1e-4. Repeatable."),
]
NoLive = Annotated[bool, typer.Option("--no-live", help="Print plain lines instead of a live view.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only errors and the result; train.log has the rest.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the reasons for the plan and all details beside the live view.")
]
DataSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="data.mask=instances, data.label_values=[0,1,7], data.label_map={2: 1}, data.ignore_value=255, "
        "data.axes=CYX, ... as for train. Repeatable.",
    ),
]
Accelerator = Annotated[
    DeviceKind | None, typer.Option(help="Where to compute.", show_default="as in training, if this machine has it")
]
Overlap = Annotated[
    float,
    typer.Option(
        help="Overlap of neighboring windows, from 0 to 0.9.", parser=number_parser("--overlap", FROM_0_TO_0_9, "0.5")
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Probability above which a voxel is foreground; two classes only.",
        show_default="that of `ssl-seg calibrate`, else prediction.threshold of the training, else 0.5",
        parser=number_parser("--threshold", PROBABILITY, "0.4"),
    ),
]
Uncalibrated = Annotated[bool, typer.Option("--uncalibrated", help="Ignore what `ssl-seg calibrate` has stored.")]
Figure = Annotated[Path | None, typer.Option(help="Write a picture to this file.")]
ReportPage = Annotated[
    Path | None, typer.Option("--report", help="Write an HTML page, a single file: verdict, pictures, tables.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
