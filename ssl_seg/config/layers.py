"""Reading, merging, checking and writing configurations.

Order, later wins: field defaults < plan from the data < file named by ``extends`` < file < command line.
Every problem of every layer is reported in one error, with the place it was set.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ssl_seg.config import Config
from ssl_seg.config.hints import describe_problem, find_source
from ssl_seg.config.presets import expand, expand_views
from ssl_seg.errors import ConfigError, did_you_mean
from ssl_seg.files import read_text

Nested = dict[str, Any]
Model = TypeVar("Model")

_STAND_IN = "plan"
ABLATIONS = "ablations"
"""Folder of the packaged ablations, which are no configurations."""


@dataclass(frozen=True)
class Layer:
    """Settings from one place; ``source`` is a file name or an option, for messages."""

    source: str
    values: Nested
    is_file: bool = False
    """A file takes the place of a parent's settings; options are laid over them."""
    is_option: bool = False
    """Options in a row are one statement: none of them drops what another one says."""


def packaged_configs() -> Path:
    """Return the folder of the configurations that come with the package."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def list_packaged() -> dict[str, Path]:
    """Return name -> file of the configurations that come with the package."""
    folder = packaged_configs()
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return {name: path for name, path in names.items() if not name.startswith(f"{ABLATIONS}/")}


def find_config(name: str) -> Path:
    """Return the file for a path or for the name of a packaged configuration.

    Raises:
        ConfigError: when neither exists; lists the packaged names.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = list_packaged()
    if name.removesuffix(".yaml") in packaged:
        return packaged[name.removesuffix(".yaml")]
    raise ConfigError(
        f"no configuration file '{name}', and no packaged one of that name{did_you_mean(name, packaged)}. "
        f"Packaged: {', '.join(sorted(packaged))}."
    )


def read_layers(name: str) -> list[Layer]:
    """Read a file and the one it extends.

    Raises:
        ConfigError: missing file, invalid YAML, a key given twice, or a second level of ``extends``.
    """
    path = find_config(name)
    values = read_yaml(path)
    parent = values.pop("extends", None)
    if parent is None:
        return [Layer(str(path), values, is_file=True)]
    beside = path.parent / str(parent)
    base = find_config(str(beside) if beside.is_file() else str(parent))
    base_values = read_yaml(base)
    if "extends" in base_values:
        raise ConfigError(f"{path} extends {base}, which itself has 'extends': only one level is allowed")
    return [Layer(str(base), base_values, is_file=True), Layer(str(path), values, is_file=True)]


def parse_override(text: str) -> Layer:
    """Return the layer of one ``--set key.sub=value``; the value is read as YAML.

    Raises:
        ConfigError: without ``=`` or with a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"--set {text}: write key=value, for example --set optim.lr=1e-4")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not valid YAML") from error
    return Layer(f"--set {text}", nest(key.strip(), parsed), is_option=True)


def nest(dotted: str, value: Any) -> Nested:
    """``nest("a.b", 1)`` is ``{"a": {"b": 1}}``."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return dict(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and leaves; an empty mapping is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def leave_out(values: Nested, dropped: Collection[str], prefix: str = "") -> Nested:
    """Return nested settings without the dotted keys, or whole sections, of ``dropped``."""
    return {
        key: leave_out(value, dropped, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in dropped
    }


class Settings(NamedTuple):
    """Merged layers: nested values, and the source of each dotted key."""

    values: Nested
    sources: dict[str, str]

    def get(self, dotted: str, default: Any = None) -> Any:
        """Return the value of a setting, or ``default`` where no layer gives it."""
        value: Any = self.values
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def section(self, name: str) -> Nested:
        """Return a section; empty where it is missing, or is no mapping."""
        section = self.values.get(name)
        return section if isinstance(section, dict) else {}

    def over(self, *layers: Layer) -> Settings:
        """Return the settings laid over layers that have a lower precedence."""
        return _lay_over(merge_layers(layers), self)

    def under(self, *layers: Layer) -> Settings:
        """Return the settings with layers of a higher precedence laid over them."""
        return _lay_over(self, merge_layers(layers))


def merge_layers(layers: Sequence[Layer]) -> Settings:
    """Merge layers, later ones winning; options of one command line count as one layer.

    What belongs together is replaced together: a layer that gives loss weights, or a preset of them, drops the weights,
    options and phases of those below, and one that changes the method drops the options of the one below. A preset is
    written out here, so that it appears nowhere else.

    Raises:
        ConfigError: for an unknown preset.
    """
    merged = Settings({}, {})
    for is_option, group in groupby(layers, key=lambda layer: layer.is_option):
        members = [Settings(layer.values, dict.fromkeys(_keys(layer.values), layer.source)) for layer in group]
        if is_option:  # options say one thing together, and none drops what another one says
            members = [reduce(partial(_lay_over, drop=False), members, Settings({}, {}))]
        for said in members:
            merged = _lay_over(merged, _expand_presets(said))
    return merged


def _keys(values: Nested) -> list[str]:
    return [dotted for dotted, _ in flatten(values)]


def _lay_over(below: Settings, above: Settings, *, drop: bool = True) -> Settings:
    """Return settings laid over others; with ``drop``, what belongs together is replaced together."""
    dropped = _find_replaced(below.values, above.values) if drop else set()
    merged = leave_out(below.values, dropped)
    sources = {
        name: source
        for name, source in below.sources.items()
        if not any(name == key or name.startswith(f"{key}.") for key in dropped)
    }
    for dotted, value in flatten(above.values):
        target = merged
        *path, last = dotted.split(".")
        for part in path:
            if not isinstance(target.get(part), dict):
                target[part] = {}
            target = target[part]
        if value == {}:  # an empty section adds nothing to what an earlier layer said
            target.setdefault(last, {})
        else:
            target[last] = value
            sources[dotted] = above.sources[dotted]
    return Settings(merged, sources)


def _expand_presets(settings: Settings) -> Settings:
    values, sources = settings
    for section, write_out in (("loss", expand), ("augment", expand_views)):
        given, key = values.get(section), f"{section}.preset"
        if not isinstance(given, dict) or "preset" not in given:
            continue
        try:
            values = {**values, section: write_out(given)}
        except ConfigError as error:
            raise ConfigError(f"{find_source(key, sources)}{error}") from None
        source = f"{sources[key]} (preset {given['preset']})"
        own = {name: origin for name, origin in sources.items() if name != key}
        sources = {**dict.fromkeys(_keys(values), source), **own}
    return Settings(values, sources)


def _find_replaced(below: Nested, above: Nested) -> set[str]:
    """Return the dotted keys below that do not hold with what is laid over them."""
    new_loss, new_method, old_method = above.get("loss"), above.get("method"), below.get("method")
    dropped = set()
    if isinstance(new_loss, dict) and "weights" in new_loss:
        dropped |= {"loss.weights", "loss.options", "loss.phases", "loss.class_weights"}
    if isinstance(new_method, dict) and isinstance(old_method, dict):
        old_name = old_method.get("name")
        dropped |= {"method.options"} if new_method.get("name", old_name) != old_name else set()
    return dropped


def build_config(settings: Settings) -> tuple[Config, dict[str, str]]:
    """Validate settings.

    Returns:
        The configuration, and the source of each dotted key (``default`` where no layer set it).

    Raises:
        ConfigError: one error with all problems.
    """
    config = validate(Config, settings.values, settings.sources)
    return config, {key: settings.sources.get(key, "default") for key, _ in flatten(to_plain(config))}


def check_partial(settings: Settings) -> tuple[Config, frozenset[str]]:
    """Check settings, with stand-ins for the values that are planned from the data.

    Returns:
        The configuration, and the dotted keys whose values are stand-ins.

    Raises:
        ConfigError: one error with all problems.
    """
    sizes, ignored = map(settings.get, ("data.spacing", "data.resample_to")), settings.get("data.ignore_value")
    patch_size = [64] * (3 if any(isinstance(size, list) and len(size) == 3 for size in sizes) else 2)
    label_values = [value for value in range(3) if value != ignored][:2]
    stand_ins = {
        "data": {"label_values": label_values, "channels": 1, "patch_size": patch_size, "foreground_ratio": 0.0},
        "network": {"name": "any"},
        "batch": {"labeled": 1, "unlabeled": 1},
        "length": {"steps": 10**9},
        "optim": {"warmup_steps": 0},
    }
    config, sources = build_config(settings.over(Layer(_STAND_IN, stand_ins)))
    return config, frozenset(key for key, source in sources.items() if source == _STAND_IN)


def convert(settings: Settings) -> Settings:
    """Return settings with values of the types of their fields: YAML takes ``5e-1`` for text, as it does ``"2"``.

    Raises:
        ConfigError: see ``check_partial``.
    """
    made = dict(flatten(to_plain(check_partial(settings)[0])))

    def take(values: Nested, prefix: str) -> Nested:
        return {
            key: take(value, f"{prefix}{key}.") if isinstance(value, dict) else made.get(f"{prefix}{key}", value)
            for key, value in values.items()
        }

    return settings._replace(values=take(settings.values, ""))


def validate(
    model: type[Model], values: Nested, sources: Mapping[str, str] | None = None, *, prefix: str = ""
) -> Model:
    """Return ``model``, a section or a dataclass, built from ``values``.

    Raises:
        ConfigError: one error with all problems: where, value, rule, nearest known key.
    """
    adapter = TypeAdapter(model)
    try:
        made = adapter.validate_python(values)
    except ValidationError as error:
        items = _leave_out_shortened(error.errors(include_url=False))
        problems = [describe_problem(model, item, sources or {}, prefix) for item in items]
        raise ConfigError("\n".join(chain.from_iterable(problems))) from None
    if counted := [prefix + name for name in _find_counted(values, adapter.dump_python(made), "")]:
        rule = "holds yes, no, on, off, true or false, where a number is needed"
        raise ConfigError("\n".join(f"{find_source(name, sources or {})}{name} {rule}" for name in counted))
    return made


def _leave_out_shortened(items: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Return the errors but those on lengths of lists that are short only because pydantic dropped wrong items."""
    places = [item["loc"] for item in items]
    return [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(len(place) > len(item["loc"]) and place[: len(item["loc"])] == item["loc"] for place in places)
    ]


def _find_counted(given: Any, made: Any, name: str) -> Iterator[str]:
    """Yield the names of given booleans that became the numbers 0 and 1, as pydantic lets them."""
    if isinstance(given, bool) and isinstance(made, int | float) and not isinstance(made, bool):
        yield name
    elif isinstance(given, Mapping) and isinstance(made, Mapping):
        found = {str(key): value for key, value in made.items()}
        for key, value in given.items():
            yield from _find_counted(value, found.get(str(key)), f"{name}.{key}" if name else str(key))
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple) and len(given) == len(made):
        yield from dict.fromkeys(
            found for pair in zip(given, made, strict=True) for found in _find_counted(*pair, name)
        )


def to_plain(config: BaseModel) -> Nested:
    """Return nested dicts, lists, strings, numbers, booleans and None."""
    return dict(config.model_dump(mode="json"))


def dump_config(config: BaseModel, header: str = "") -> str:
    """Return the configuration as YAML text, with ``header`` as leading comment lines."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + yaml.safe_dump(to_plain(config), sort_keys=False, default_flow_style=None, width=100)


def show_value(value: Any) -> str:
    """Return the value of a setting as a configuration file writes it: ``null`` and not ``None``."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_yaml(path: Path) -> Nested:
    """Return the mapping that a file holds; empty for one that holds nothing but comments.

    Raises:
        ConfigError: unreadable, empty (a copy that failed would pass for the defaults), invalid YAML, a key given
            twice, or no mapping.
    """
    try:
        text = read_text(path)
        values = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise ConfigError(f"{path} is an empty file: write it again, or leave it out to have all settings planned")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds a {type(values).__name__}; a configuration is a mapping of section: {{key: value}}"
        )
    return values


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys silently; here that is an error."""


def _construct_unique(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # `<<` is no key
    keys = [loader.construct_object(key, deep=True) for key in own]
    twice = sorted({str(k) for k in keys if keys.count(k) > 1})
    if twice:
        raise yaml.YAMLError(f"key '{twice[0]}' is given twice (line {node.start_mark.line + 1} ff.)")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique)
