"""Checks of settings by themselves, before any data are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ssl_seg.config import LossConfig, MethodConfig
from ssl_seg.config.hints import find_source
from ssl_seg.config.layers import Settings, check_partial, validate
from ssl_seg.errors import ConfigError, NetworkError, did_you_mean
from ssl_seg.losses import check_class_weights, check_loss_names, make_supervised_loss
from ssl_seg.methods import METHODS, make_method
from ssl_seg.monitor.catalog import CODES
from ssl_seg.networks.builders import check_deep_supervision, check_patch_size, get_network_spec


def check_settings(settings: Settings) -> None:
    """Check all that can be known without the data; values that are planned from it may be missing.

    Raises:
        ConfigError: unknown keys, wrong values, an unknown method, network, loss or option, or a patch size that the
            network cannot take: all in one error.
    """
    sources = settings.sources
    problems = [
        *_collect(partial(check_partial, settings)),
        *_check_components(settings.section("loss"), sources),
        *_collect(partial(_check_method, settings.section("method"), sources)),
        *_check_network(settings.section("network"), settings.section("data"), sources),
        *_check_codes(settings.section("monitor").get("act_on") or (), sources),
    ]
    problems = problems or _collect(partial(_check_loss, settings))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _check_codes(codes: Any, sources: Mapping[str, str]) -> list[str]:
    """Return a line for each code of monitor.act_on that the monitor does not know."""
    unknown = [code for code in codes if isinstance(code, str) and code not in CODES]
    where = f"{find_source('monitor.act_on', sources)}monitor.act_on: "
    return [f"{where}there is no verdict '{code}'{did_you_mean(code, CODES)}" for code in unknown]


def _collect(check: Callable[[], object], where: str = "") -> list[str]:
    try:
        check()
    except (ConfigError, NetworkError) as error:
        return [f"{where}{line}" for line in str(error).splitlines()]
    return []


def _check_components(loss: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Return the problems of all names of components, with their places; other problems are left for the models."""
    phases = loss.get("phases")
    places = {f"loss.{key}": loss.get(key) for key in ("weights", "options")}
    for index, phase in enumerate(phases if isinstance(phases, list) else ()):
        places[f"loss.phases.{index}.weights"] = phase.get("weights") if isinstance(phase, dict) else None
    return [
        line
        for place, named in places.items()
        if isinstance(named, dict)
        for line in _collect(partial(check_loss_names, named), f"{find_source(place, sources)}{place}: ")
    ]


def _check_loss(settings: Settings) -> None:
    sources = settings.sources
    config = validate(LossConfig, settings.section("loss"), sources, prefix="loss.")
    label_values = settings.get("data.label_values")
    try:
        make_supervised_loss(config)
        if isinstance(label_values, list):
            check_loss_classes(config, len(label_values))
    except ConfigError as error:
        lines = [f"{find_source(line.split()[0].rstrip(':'), sources)}{line}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from None


def check_loss_classes(loss: LossConfig, num_classes: int) -> None:
    """Check that a loss with class weights has one for each class.

    Raises:
        ConfigError: for another number of them.
    """
    for weights in (loss.class_weights, loss.options.get("cross_entropy", {}).get("class_weights")):
        if isinstance(weights, list | tuple):
            check_class_weights(weights, num_classes)


def _check_method(section: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    method = validate(MethodConfig, dict(section), sources, prefix="method.")
    if method.name in METHODS:
        validate(METHODS[method.name].config_type, method.options, sources, prefix="method.options.")
    try:
        make_method(method.name, method.options, make_supervised_loss(LossConfig()), num_classes=2)
    except ConfigError as error:
        raise ConfigError(f"{find_source('method.name', sources)}{error}") from None


def _check_network(network: Mapping[str, Any], data: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    name, patch_size = network.get("name"), data.get("patch_size")
    if not isinstance(name, str):
        return []
    problems = _collect(partial(get_network_spec, name), f"{find_source('network.name', sources)}network.name: ")
    heads, at_heads = network.get("deep_supervision"), find_source("network.deep_supervision", sources)
    if not problems and isinstance(heads, int) and not get_network_spec(name).deep_supervision:
        problems = _collect(partial(check_deep_supervision, name, (), heads), at_heads)
    if problems or not isinstance(patch_size, list) or not all(isinstance(size, int) for size in patch_size):
        return problems
    where = f"{find_source('data.patch_size', sources)}data.patch_size: "
    problems = _collect(partial(check_patch_size, name, patch_size), where)
    if problems or not isinstance(heads, int):
        return problems
    return _collect(partial(check_deep_supervision, name, patch_size, heads), at_heads)
