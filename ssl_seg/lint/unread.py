"""Settings that are given and that nothing reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ssl_seg.config import Config

_READ_WHEN: dict[str, tuple[str, Callable[[Config], bool]]] = {
    "optim.poly_power": ("optim.schedule = poly", lambda c: c.optim.schedule == "poly"),
    "optim.restart_epochs": ("optim.schedule = cosine_restarts", lambda c: c.optim.schedule == "cosine_restarts"),
    "optim.restart_growth": ("optim.schedule = cosine_restarts", lambda c: c.optim.schedule == "cosine_restarts"),
    "optim.one_cycle_rise": ("optim.schedule = one_cycle", lambda c: c.optim.schedule == "one_cycle"),
    "optim.plateau_patience": ("optim.schedule = reduce_on_plateau", lambda c: c.optim.schedule == "reduce_on_plateau"),
    "optim.plateau_factor": ("optim.schedule = reduce_on_plateau", lambda c: c.optim.schedule == "reduce_on_plateau"),
    "optim.floor": ("another optim.schedule than constant", lambda c: c.optim.schedule != "constant"),
    "optim.lr_batch_size": ("optim.lr_scaling = linear or sqrt", lambda c: c.optim.lr_scaling != "none"),
    "split.val_fraction": ("split.folds and split.file unset", lambda c: not (c.split.folds or c.split.file)),
    "bootstrap.reset_head": ("bootstrap.parts = all; the head is new already", lambda c: c.bootstrap.parts == "all"),
    "split.test_fraction": ("split.file unset", lambda c: c.split.file is None),
}
"""Setting -> with what it is read, in words and as a condition."""


def setting_without_effect(config: Config) -> Iterator[str]:
    """A value that differs from the default was meant to do something."""
    for key, (words, is_read) in _READ_WHEN.items():
        section, name = key.split(".")
        settings = getattr(config, section)
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default and not is_read(config):
            yield f"{key} = {value} is read only with {words}. Leave it out, or set that too"


def cutmix_without_effect(config: Config) -> Iterator[str]:
    """CutMix mixes unlabeled patches; without any it does nothing."""
    if config.augment.cutmix > 0 and config.batch.unlabeled == 0:
        yield f"augment.cutmix = {config.augment.cutmix:g} is read only with batch.unlabeled above 0. Leave it out"
