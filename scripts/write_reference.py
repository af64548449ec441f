"""Write the reference pages of the documentation from the code: commands, settings, Python, limits of the monitor.

    python scripts/write_reference.py            # writes docs/reference/*.md; tests/test_docs.py says when it is due

Nothing on these pages is written by hand: the texts are the help of the commands, the docstrings below the fields of
the settings, the docstrings of the public functions, and the table of the limits.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import OptionInfo, ParameterInfo

import ssl_seg
from ssl_seg.cli.app import app
from ssl_seg.config import Config
from ssl_seg.config.hints import find_section_type
from ssl_seg.config.layers import to_plain
from ssl_seg.diagnose.catalog import LIMITS
from ssl_seg.losses import LOSSES
from ssl_seg.losses.components import list_options
from ssl_seg.methods import METHODS
from ssl_seg.networks.builders import NETWORKS
from ssl_seg.report import notebook

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
MADE = "<!-- Made by scripts/write_reference.py: change the code, not this page. -->\n"
RESULTS = ("TrainedRun", "PretrainedRun", "Evaluation", "PredictedMasks", "DataAudit")
"""What the Python functions return."""
WORDS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def render() -> dict[str, str]:
    """Return the name and the text of each page."""
    return {
        "commands.md": render_commands(),
        "settings.md": render_settings(),
        "python.md": render_python(),
        "limits.md": render_limits(),
    }


def render_commands() -> str:
    """Return the page of all commands with their arguments and options."""
    found = list(_list_commands(app, "ssl-seg"))
    index = [f"| [`{name}`](#{name.replace(' ', '-')}) | {_escape(_paragraphs(call)[0])} |" for name, call in found]
    head = [
        MADE,
        "# Commands\n",
        "`ssl-seg COMMAND --help` prints the same. Exit codes: 0 done, 2 something you can fix, 3 stopped by the "
        "monitor, or refused.\n",
        "| command | what it does |\n|---|---|",
        *index,
    ]
    return "\n".join(head) + "\n" + "".join(_render_command(name, call) for name, call in found)


def render_limits() -> str:
    """Return the page of the numbers that the rules of the monitor and of `diagnose` go by."""
    head = [
        MADE,
        "# Limits of the monitor\n",
        "What the rules behind [the verdicts](../collapse.md#the-verdicts) go by. A source of *ours* is a choice made "
        "here, *reported* a figure of the reports of failed trainings, *measured* one of runs here.\n",
        "| limit | value | meaning | source |\n|---|---:|---|---|",
    ]
    rows = [f"| `{name}` | {entry.value:g} | {entry.meaning} | {entry.source} |" for name, entry in LIMITS.items()]
    return "\n".join([*head, *rows]) + "\n"


def _list_commands(group: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for entry in group.registered_commands:
        if entry.callback is not None and entry.name is not None:
            yield f"{prefix} {entry.name}", entry.callback
    for sub in group.registered_groups:
        if sub.typer_instance is not None:
            yield from _list_commands(sub.typer_instance, f"{prefix} {sub.name}")


def _render_command(name: str, call: Callable[..., Any]) -> str:
    hints = typing.get_type_hints(inspect.unwrap(call), include_extras=True)
    arguments, rows = [], []
    for parameter in inspect.signature(call).parameters.values():
        kind, info = typing.get_args(hints[parameter.name])[:2]
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        is_required = parameter.default is inspect.Parameter.empty
        takes = _describe_type(kind, info)
        if isinstance(info, OptionInfo):
            first = [info.default] if isinstance(info.default, str) else []  # in Annotated, a name takes its place
            names = [*first, *(info.param_decls or ())] or [f"--{parameter.name.strip('_').replace('_', '-')}"]
            shown = ", ".join(names)
            cell = f"`{shown}{'' if takes == 'BOOL' else f' {takes}'}`"
        else:
            shown = info.metavar or parameter.name.strip("_").upper()
            cell = f"`{shown}`"
            arguments.append(shown if is_required else f"[{shown}]")
        rows.append(f"| {_escape(cell)} | {_escape(info.help or '')}{_describe_default(info, default, is_required)} |")
    usage = " ".join([name, *arguments, *(["[OPTIONS]"] if len(rows) > len(arguments) else [])])
    table = ["| option | meaning |\n|---|---|", *rows, ""] if rows else []
    return "\n".join([f"\n## {name}\n", f"```\n{usage}\n```\n", *(f"{p}\n" for p in _paragraphs(call)), *table])


def _describe_type(kind: Any, info: ParameterInfo) -> str:
    """Return what an option takes, as ``a|b``, ``INTEGER 0..9`` or the placeholder that the code gives."""
    if info.metavar:
        return info.metavar
    parts = [part for part in typing.get_args(kind) if part is not type(None)] or [kind]
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, parts))
    first = parts[0]
    if typing.get_origin(first) is Literal:
        return "|".join(map(str, typing.get_args(first)))
    if first is bool:
        return "BOOL"
    ends = f" {'' if info.min is None else info.min}..{'' if info.max is None else info.max}"
    return WORDS.get(first, "TEXT") + ("" if info.min is info.max is None else ends)


def _describe_default(info: ParameterInfo, default: Any, is_required: bool) -> str:
    if is_required:
        return " Required." if isinstance(info, OptionInfo) else ""
    if isinstance(info.show_default, str):
        return f" Default: {_escape(info.show_default.rstrip('.'))}."
    return "" if default is None or default is False or default == "" else f" Default: {_escape(str(default))}."


def render_settings() -> str:
    """Return the page of all settings, of the options of the methods and losses, and of the networks."""
    parts = [
        MADE,
        "# Settings\n",
        "For `--set KEY=VALUE` and for configuration files. Those without a default are planned from the data, unless "
        "you give them. `ssl-seg config show --data DIR --explain` prints the values for your data, with the meanings "
        "below.\n",
    ]
    whole = {name: field for name, field in Config.model_fields.items() if find_section_type(field.annotation) is None}
    parts += ["## The run as a whole\n", *_render_fields(whole, "")]
    for name, field in Config.model_fields.items():
        section = find_section_type(field.annotation)
        if section is not None:
            parts += _render_section(name, section, field)
    parts += ["## Methods\n", "`method.name=NAME`; options as `method.options.OPTION=VALUE`.\n"]
    for name, method in METHODS.items():
        parts += [f"### {name}\n", _first_line(method) + "\n"]
        parts += _render_fields(method.config_type.model_fields, "method.options.")
    parts += ["## Networks\n", "| `network.name` | | default `network.features` |\n|---|---|---:|"]
    parts += [
        f"| `{name}` | {_escape(spec.description)} | {spec.default_features} |" for name, spec in NETWORKS.items()
    ]
    parts += ["\n## Losses\n", "`loss.weights.NAME=WEIGHT`; options as `loss.options.NAME.OPTION=VALUE`.\n"]
    parts += ["| component | | options |\n|---|---|---|"]
    for name, loss in LOSSES.items():
        options = ", ".join(f"`{key}` {_show(value)}" for key, value in list_options(name).items())
        parts.append(f"| `{name}` | {_escape(_first_line(loss).removeprefix('Return '))} | {_escape(options)} |")
    return "\n".join(parts) + "\n"


def _render_section(name: str, section: type[BaseModel], field: FieldInfo | None = None) -> list[str]:
    said = " ".join((field.description or "").split()) if field is not None else ""
    lines = [f"## {name}\n", (_tidy(said or section.__doc__ or "")) + "\n"]
    lines += _render_fields(section.model_fields, f"{name}.")
    for key, inner in section.model_fields.items():
        below = find_section_type(inner.annotation)
        if below is not None:
            lines += _render_section(f"{name}.{key}", below, inner)
    return lines


def _render_fields(fields: Mapping[str, FieldInfo], prefix: str) -> list[str]:
    rows = [
        f"| `{prefix}{key}` | {_escape(_show_default(field))} | {_escape(_tidy(field.description or ''))} |"
        for key, field in fields.items()
        if find_section_type(field.annotation) is None
    ]
    return ["| setting | default | meaning |\n|---|---|---|", *rows, ""] if rows else []


def _show_default(field: FieldInfo) -> str:
    return "planned" if field.is_required() else _show(field.get_default(call_default_factory=True))


def _show(value: Any) -> str:
    """Return a value as YAML has it."""
    plain = to_plain(value) if isinstance(value, BaseModel) else value
    if plain is None or isinstance(plain, bool):
        return {None: "null", True: "true", False: "false"}[plain]
    if isinstance(plain, Mapping):
        return "{" + ", ".join(f"{key}: {_show(item)}" for key, item in plain.items()) + "}"
    if isinstance(plain, tuple | list):
        return "[" + ", ".join(map(_show, plain)) + "]"
    return f"{plain:g}" if isinstance(plain, float) else str(plain)


def render_python() -> str:
    """Return the page of the public functions and of what they return."""
    parts = [
        MADE,
        "# Python\n",
        "`import ssl_seg` gives the names below. Nothing is printed unless `progress=True`. Errors are subclasses of "
        "`ssl_seg.errors.SslSegError`.\n",
        "## Functions\n",
    ]
    public = {name: getattr(ssl_seg, name) for name in ssl_seg.__all__}
    for name, value in public.items():
        if not inspect.isclass(value):
            parts.append(_render_callable(name, value))
    parts.append("## Requests\n")
    parts += [_render_class(name, value) for name, value in public.items() if inspect.isclass(value)]
    parts.append("## Results\n")
    parts += [_render_class(name, getattr(notebook, name)) for name in RESULTS]
    return "\n".join(parts)


def _render_callable(name: str, call: Callable[..., Any]) -> str:
    lines, keyword_only = [], False
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("    *,")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        lines.append(f"    {stars}{parameter.name}: {_annotation(parameter.annotation)}{default},")
    returned = _annotation(inspect.signature(call).return_annotation)
    code = "\n".join([f"{name}(", *lines, f") -> {returned}"])
    return f"### {name}\n\n```python\n{code}\n```\n\n{_render_docstring(inspect.getdoc(call) or '')}\n"


def _render_class(name: str, kind: type) -> str:
    """Return a dataclass with its fields and properties: the docstrings below them are in its source."""
    source = inspect.getsource(kind)
    fields = re.findall(r'^    (\w+): ([^\n=]+?)(?: = ([^\n]+))?\n(?:    """(.+?)"""\n)?', source, re.S | re.M)
    rows = [f"| `{field}: {_escape(annotation)}` | {_escape(_tidy(said))} |" for field, annotation, _, said in fields]
    for key, value in vars(kind).items():
        if isinstance(value, property):
            rows.append(f"| `{key}` | {_escape(_tidy(inspect.getdoc(value) or ''))} |")
    table = "\n".join(["| field | |\n|---|---|", *rows]) if rows else ""
    return f"### {name}\n\n{_render_docstring(inspect.getdoc(kind) or '')}\n{table}\n"


def _render_docstring(text: str) -> str:
    """Return a Google-style docstring as Markdown: its sections are lists."""
    lines: list[str] = []
    for line in text.split("\n"):
        entry = re.fullmatch(r"    (\*{0,2}\w[\w*, ]*): (.+)", line)
        if line in ("Args:", "Raises:", "Returns:"):
            lines.append(f"**{line}**\n")
        elif entry:
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(f"  {line.strip()}" if line.startswith("    ") else line)
    return "\n".join(lines).replace("``", "`") + "\n"


def _annotation(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return text.replace("_Path", "str | Path")


def _paragraphs(call: Callable[..., Any]) -> list[str]:
    return [_tidy(part) for part in (inspect.getdoc(call) or "").split("\n\n")]


def _first_line(value: object) -> str:
    return _tidy((value.__doc__ or "").splitlines()[0])


def _tidy(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _escape(text: str) -> str:
    r"""Return text for a cell of a table: ``|`` would end it, ``<`` would begin a tag outside of code."""
    return re.sub(r"<(?![^`]*`)", "&lt;", text).replace("|", r"\|")


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in render().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
