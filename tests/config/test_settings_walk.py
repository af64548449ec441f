"""Every setting changes what a training does, or is said to change nothing: a walk over all of them.

Each setting is changed in short trainings, and what they leave behind is compared: records, events, networks,
optimizer, files. ``ACTS`` has what each setting acts with, ``IDLE`` where it does not.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import Notes
from test_configio import list_settings
from timm_stand_in import install_timm
from torch import Tensor

from ssl_seg.config import Config, TargetsConfig
from ssl_seg.config.layers import Layer, parse_override
from ssl_seg.data.splits.files import load_split, save_split
from ssl_seg.data.splits.split import Split
from ssl_seg.errors import SslSegError
from ssl_seg.losses import LOSSES, list_options
from ssl_seg.losses.components import bind_options
from ssl_seg.methods import METHODS
from ssl_seg.monitor.findings import Verdict
from ssl_seg.networks.builders import NETWORKS, build_network
from ssl_seg.run import assembly, directory, training
from ssl_seg.run.lint import idle
from ssl_seg.run.lint.conditions import CONDITIONS, Condition, list_derived
from ssl_seg.run.preflight import gather_facts
from ssl_seg.run.pretraining.run import pretrain
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import resolve
from ssl_seg.run.training import train

BASE: dict[str, Any] = {
    "data": {"patch_size": [16, 16]},
    "network": {"name": "dynunet", "features": 2},
    "batch": {"labeled": 2, "unlabeled": 2},
    "split": {"labels": 0.5},
    "length": {"steps": 8, "steps_per_epoch": 2},
    "monitor": {"probe_patches": 3, "train_probe_patches": 2},
    "runtime": {"precision": "fp32", "memory_format": "contiguous", "accelerator": "cpu"},
}
"""Four epochs of two steps with labeled and unlabeled images, three classes, images without foreground."""

Settings = tuple[str, ...]
EPOCHS = ("length.steps_per_epoch=1",)
FLAT = (*EPOCHS, "optim.lr=1e-12")
"""No score gets better than the first one."""
WILD = ("optim.lr=1e30", "optim.clip_norm=null", "optim.weight_decay=0")
"""Networks of NaN."""
FIXMATCH, AD_MT = ("method.name=fixmatch",), ("method.name=ad_mt",)
SUPERVISED = ("method.name=supervised", "batch.unlabeled=0")
PHASES = "loss.phases=[{from_epoch: %s, weights: {focal: %s}, blend_epochs: %s}]"
GATE = "gates=[{metric: %s, %s}]"
SWA, NOISE, RESPONSE = "policies.swa", "policies.weight_noise", "policies.plateau_response"
ROLLED = (
    f"{RESPONSE}={{patience: 1, base: 3, rollback_drop: 0.001, after_rollback: {{base: 2, judge_epochs: null}}}}",
    f"{NOISE}={{start_epoch: 2, every_epochs: 99, std: 0.3}}",
    *FLAT,
)
"""Noise spoils the networks after epoch 2, so that they are rolled back after epoch 3; then each epoch is a plateau."""
RESTARTS = ("optim.schedule=cosine_restarts", "optim.restart_epochs=1")
PARENT = ("parent", "bootstrap.gate=none")
RECOVER = ("monitor.on_collapse=recover",)
EMPTY = ("data.label_map={1: 0, 2: 0}", "data.label_values=[0, 1]", "split.allow_faults=true")
ENCODER = ("network.name=encoder_unet", "data.patch_size=[64, 64]")
CUT = ("data.threshold=1", "data.label_values=[0, 1]")
VOLUMES = ("data.root=VOLUMES", "data.patch_size=[16, 16, 16]")
ALL = ("split.labels=1.0", "split.test_fraction=0.1", "data.root=ALL_LABELED")

ACTS: dict[str, tuple[str, Settings]] = {
    # setting -> its change, and what both runs have
    "seed": ("seed=1", ()),
    "data.root": ("data.root=OTHER", ()),
    "data.layout": ("data.layout=nnunet", ()),
    "data.groups": ("data.groups=GROUPS", ()),
    "data.unlabeled": ("data.unlabeled=MORE", ()),
    "data.pseudo_labels": ("data.pseudo_labels=PSEUDO", ()),
    "data.mask": ("data.mask=binary", ("data.mask=semantic", "data.label_map={2: 1}", *CUT)),
    "data.task": ("data.task=instances", ("data.mask=instances",)),
    "data.threshold": ("data.threshold=0.5", ("data.mask=binary", *CUT)),
    "data.label_values": ("data.label_values=[0, 2, 1]", ()),
    "data.label_map": ("data.label_map={2: 1}", ()),
    "data.ignore_value": ("data.ignore_value=2", ("data.label_values=[0, 1]",)),
    "data.axes": ("data.axes=XY", ("data.root=ARRAYS",)),
    "data.nodata": ("data.nodata=0", ()),
    "data.nonfinite": ("data.nonfinite=ignore", ("data.root=GAPS",)),
    "data.window": ("data.window=[20, 120]", ()),
    "data.tiles": ("data.tiles=2", ("data.root=LARGE",)),
    "data.channels": ("data.channels=3", ()),
    "data.patch_size": ("data.patch_size=[32, 64]", ()),
    "data.spacing": ("data.spacing=[1.5, 1.5]", ("data.resample_to=[2, 2]", "data.spacing=[1, 1]")),
    "data.resample_to": ("data.resample_to=[2, 2]", ("data.spacing=[1, 1]",)),
    "data.foreground_ratio": ("data.foreground_ratio=1", ()),
    "split.file": ("split.file=SPLIT", ()),
    "split.labels": ("split.labels=2", ()),
    "split.seed": ("split.seed=1", ()),
    "split.label_seed": ("split.label_seed=3", ()),
    "split.val_fraction": ("split.val_fraction=0.4", ()),
    "split.test_fraction": ("split.test_fraction=0.4", ()),
    "split.folds": ("split.folds=3", ()),
    "split.fold": ("split.fold=1", ("split.folds=3",)),
    "split.near_copies": ("split.near_copies=ignore", ("data.root=NEAR_COPIES",)),
    "split.allow_faults": ("split.allow_faults=true", ("split.file=FAULTY",)),
    "network.name": ("network.name=basic_unet", ()),
    "network.features": ("network.features=3", ()),
    "network.pretrained": ("network.pretrained=PRETRAINED", ()),
    "network.norm": ("network.norm=batch", ()),
    "network.encoder": ("network.encoder=resnet18", (*ENCODER, "network.encoder_weights=none")),
    "network.encoder_weights": ("network.encoder_weights=none", ENCODER),
    "network.deep_supervision": ("network.deep_supervision=1", ()),
    "method.name": ("method.name=supervised", ()),
    "method.options.consistency": ("method.options.consistency=kl", ()),
    "method.options.consistency_weight": ("method.options.consistency_weight=2", ()),
    "method.options.confidence": ("method.options.confidence=0.9", ()),
    "method.options.threshold": ("method.options.threshold=freematch", ()),
    "method.options.threshold_momentum": (
        "method.options.threshold_momentum=0.5",
        ("method.options.threshold=freematch",),
    ),
    "method.options.labeler": ("method.options.labeler=student", (*FIXMATCH, "method.options.confidence=0.4")),
    "method.options.version": ("method.options.version=v1", ("method.name=unimatch", *ENCODER)),
    "method.options.passes": ("method.options.passes=2", ("method.name=uamt",)),
    "method.options.perturbations": ("method.options.perturbations=[noise]", ("method.name=cct", *ENCODER)),
    "method.options.distance_weight": ("method.options.distance_weight=3", ("method.name=dtc", *ENCODER)),
    "method.options.steepness": ("method.options.steepness=1", ("method.name=dtc", *ENCODER)),
    "method.options.period": ("method.options.period=2", (*AD_MT, "method.options.confidence=0.4")),
    "method.options.teacher_decay": ("method.options.teacher_decay=0", (*AD_MT, "method.options.confidence=0.4")),
    "method.options.beta": ("method.options.beta=5", ("method.name=ict",)),
    "method.options.first_stage": ("method.options.first_stage=0.9", ("method.name=bcp",)),
    "method.options.rampup_ratio": ("method.options.rampup_ratio=1.0", ()),
    "method.options.rampup_steps": ("method.options.rampup_steps=7", ()),
    "method.options.rampup": ("method.options.rampup=linear", ()),
    "loss.weights": ("loss.weights={dice: 1}", ()),
    "loss.options": ("loss.options.dice.smooth=3", ()),
    "loss.fp_cost": ("loss.fp_cost=2", ()),
    "loss.fn_cost": ("loss.fn_cost=2", ()),
    "loss.class_weights": ("loss.class_weights=auto", ()),
    "loss.phases": (PHASES % (1, 1, 0), ()),
    "loss.phases.from_epoch": (PHASES % (2, 1, 0), (PHASES % (1, 1, 0),)),
    "loss.phases.weights": (PHASES % (1, 2, 0), (PHASES % (1, 1, 0),)),
    "loss.phases.blend_epochs": (PHASES % (1, 1, 2), (PHASES % (1, 1, 0),)),
    "optim.name": ("optim.name=sgd", ()),
    "optim.lr": ("optim.lr=1e-3", ()),
    "optim.encoder_lr_factor": ("optim.encoder_lr_factor=0.5", ()),
    "optim.weight_decay": ("optim.weight_decay=0.5", ()),
    "optim.momentum": ("optim.momentum=0.5", ()),
    "optim.warmup_steps": ("optim.warmup_steps=3", ()),
    "optim.schedule": ("optim.schedule=cosine", ()),
    "optim.poly_power": ("optim.poly_power=2", ()),
    "optim.floor": ("optim.floor=0.5", ()),
    "optim.restart_epochs": ("optim.restart_epochs=2", RESTARTS),
    "optim.restart_growth": ("optim.restart_growth=1", RESTARTS),
    "optim.one_cycle_rise": ("optim.one_cycle_rise=0.6", ("optim.schedule=one_cycle",)),
    "optim.plateau_patience": ("optim.plateau_patience=2", ("optim.schedule=reduce_on_plateau", *FLAT)),
    "optim.plateau_factor": (
        "optim.plateau_factor=0.1",
        ("optim.schedule=reduce_on_plateau", "optim.plateau_patience=2", *FLAT),
    ),
    "optim.lr_scaling": ("optim.lr_scaling=linear", ()),
    "optim.lr_batch_size": ("optim.lr_batch_size=8", ("optim.lr_scaling=sqrt",)),
    "optim.clip_norm": ("optim.clip_norm=0.01", ()),
    "ema.decay": ("ema.decay=0.3", ()),
    "ema.warmup": ("ema.warmup=false", ()),
    "ema.schedule": ("ema.schedule=cosine", ("ema.schedule=linear", "ema.decay=0.3", "ema.final_decay=0.9")),
    "ema.final_decay": ("ema.final_decay=0.5", ("ema.schedule=linear", "ema.decay=0.3", "ema.final_decay=0.9")),
    "bootstrap.start": ("bootstrap.start=teacher", (*PARENT, "bootstrap.start=student")),
    "bootstrap.parts": ("bootstrap.parts=encoder", PARENT),
    "bootstrap.reset_head": ("bootstrap.reset_head=true", PARENT),
    "bootstrap.restart_ema": ("bootstrap.restart_ema=false", PARENT),
    "bootstrap.pseudo_label_steps": ("bootstrap.pseudo_label_steps=3", PARENT),
    "bootstrap.gate": ("bootstrap.gate=none", ("parent", "bootstrap.gate=interval")),
    "batch.labeled": ("batch.labeled=3", ()),
    "batch.unlabeled": ("batch.unlabeled=3", ()),
    "batch.positive_ratio": ("batch.positive_ratio=0.1", ()),
    "batch.foreground_share": ("batch.foreground_share=0.5", ()),
    "augment.flips": ("augment.flips=false", ()),
    "augment.rotate90": ("augment.rotate90=false", ()),
    "augment.affine": ("augment.affine=1", ()),
    "augment.rotation": ("augment.rotation=20", ("augment.affine=1",)),
    "augment.tilt": ("augment.tilt=0", ("augment.affine=1", *VOLUMES)),
    "augment.scale": ("augment.scale=0.3", ("augment.affine=1",)),
    "augment.elastic": ("augment.elastic=1", ()),
    "augment.intensity": ("augment.intensity=0.9", ()),
    "augment.invert": ("augment.invert=1", ()),
    "augment.cutout": ("augment.cutout=1", ()),
    "augment.labeled_factor": ("augment.labeled_factor=3", ()),
    "augment.strong_factor": ("augment.strong_factor=10", ()),
    "augment.cutmix": ("augment.cutmix=1", ()),
    "augment.copy_paste": ("augment.copy_paste=1", ()),
    "length.steps": ("length.steps=6", ()),
    "length.snapshots": ("length.snapshots=1", ()),
    "length.steps_per_epoch": ("length.steps_per_epoch=4", ()),
    "policies.swa.start_epoch": (f"{SWA}.start_epoch=2", (f"{SWA}.start_epoch=1",)),
    "policies.swa.every_epochs": (f"{SWA}.every_epochs=2", (f"{SWA}.start_epoch=1",)),
    "policies.weight_noise.start_epoch": (f"{NOISE}.start_epoch=2", (f"{NOISE}={{start_epoch: 1, std: 0.1}}",)),
    "policies.weight_noise.every_epochs": (f"{NOISE}.every_epochs=2", (f"{NOISE}={{start_epoch: 1, std: 0.1}}",)),
    "policies.weight_noise.std": (f"{NOISE}.std=0.2", (f"{NOISE}={{start_epoch: 1, std: 0.1}}",)),
    "policies.weight_noise.decay": (f"{NOISE}.decay=0.5", (f"{NOISE}={{start_epoch: 1, std: 0.1}}",)),
    "policies.plateau_response.patience": (f"{RESPONSE}.patience=2", (f"{RESPONSE}.patience=1", *FLAT)),
    "policies.plateau_response.base": (f"{RESPONSE}.base=2", (f"{RESPONSE}.patience=1", *FLAT)),
    "policies.plateau_response.gain": (f"{RESPONSE}.gain=0.5", (f"{RESPONSE}.patience=1", *FLAT)),
    "policies.plateau_response.cap": (f"{RESPONSE}.cap=1.2", (f"{RESPONSE}.patience=1", *FLAT)),
    "policies.plateau_response.hold_epochs": (
        f"{RESPONSE}.hold_epochs=1",
        (f"{RESPONSE}={{patience: 3, base: 2}}", *FLAT),
    ),
    "policies.plateau_response.rollback_drop": (
        f"{RESPONSE}.rollback_drop=0.05",
        (
            f"{RESPONSE}={{patience: 1, base: 50, cap: 99, hold_epochs: 4, rollback_drop: 5}}",
            *("data.root=ALL_POSITIVE", "split.labels=1.0", "monitor.probe_patches=24", "optim.lr=0.01", *EPOCHS),
        ),
    ),
    **{
        f"{RESPONSE}.after_rollback.{change.partition('=')[0]}": (f"{RESPONSE}.after_rollback.{change}", ROLLED)
        for change in ("base=3", "gain=1.5", "component_weights={dice: 3}", "judge_epochs=3")
    },
    "policies.early_stopping.patience": ("policies.early_stopping.patience=2",
                                         ("policies.early_stopping.patience=3", *FLAT)),
    "policies.gradient_noise.std": ("policies.gradient_noise.std=0.2", ("policies.gradient_noise.std=0.1",)),
    "policies.gradient_noise.decay": ("policies.gradient_noise.decay=2", ("policies.gradient_noise.std=0.1",)),
    "policies.random_batch_size.smallest": (
        "policies.random_batch_size.smallest=3",
        ("policies.random_batch_size={smallest: 1, largest: 3}",),
    ),
    "policies.random_batch_size.largest": (
        "policies.random_batch_size.largest=4",
        ("policies.random_batch_size={smallest: 1, largest: 3}",),
    ),
    "gates.metric": (GATE % ("val/teacher/f1", "above: 2"), (GATE % ("val/student/f1", "above: 2"),)),
    "gates.below": (GATE % ("val/student/f1", "below: -1, by_epoch: 1"), ()),
    "gates.above": (GATE % ("val/student/f1", "above: 2, by_epoch: 1"), ()),
    "gates.by_epoch": (GATE % ("val/student/f1", "above: 2, by_epoch: 1"), (GATE % ("val/student/f1", "above: 2"),)),
    "gates.no_fall": (GATE % ("train/lr", "no_fall: [2, 2]"), ()),
    "gates.no_rise": (GATE % ("train/lr", "no_rise: [2, 2]"), ()),
    "monitor.first_epoch_probes": ("monitor.first_epoch_probes=[0]", ()),
    "monitor.probe_patches": ("monitor.probe_patches=5", ()),
    "monitor.train_probe_patches": ("monitor.train_probe_patches=0", ()),
    "monitor.select": ("monitor.select=foreground_distance", ()),
    "monitor.keep_best": ("monitor.keep_best=3", ()),
    "monitor.check_steps": ("monitor.check_steps=3", (*WILD, "length.steps_per_epoch=8")),
    "monitor.on_collapse": ("monitor.on_collapse=recover", (*WILD, "length.steps_per_epoch=4")),
    "monitor.act_on": (
        "monitor.act_on=[not_above_trivial, foreground_bias, shifted_threshold]",
        ("monitor.on_collapse=stop", "length.steps_per_epoch=4", "optim.lr=1e-9", "data.patch_size=[32, 32]"),
    ),
    "monitor.patience_steps": ("monitor.patience_steps=1", (*WILD, *RECOVER)),
    "prediction.threshold": ("prediction.threshold=0.4", ("data.label_map={2: 1}", "data.label_values=[0, 1]")),
}  # fmt: skip

MACHINE = {key for key in list_settings(Config, "") if key.startswith("runtime.")}
MACHINE |= {"data.cache_mb", "data.disk_cache_gb"}
MACHINE |= {f"targets.{name}" for name in TargetsConfig.model_fields}
"""Speed and memory: devices and processes aside, they change no more than rounding, and acting is not their point.
Targets are what final scores are held against."""

IDLE: list[tuple[str, str, Settings]] = [
    # setting, its change, and what both runs have with which it changes nothing
    ("network.encoder_weights", "network.encoder_weights=none", ()),
    ("data.layout", "data.layout=folders", ("data.root=synthetic:particles",)),
    ("data.groups", "data.groups=GROUPS", ("data.root=synthetic:particles",)),
    ("data.label_map", "data.label_map={9: 1}", ()),
    ("data.ignore_value", "data.ignore_value=77", ()),
    ("data.axes", "data.axes=XY", ()),
    ("data.nodata", "data.nodata=255", ()),
    ("data.nonfinite", "data.nonfinite=ignore", ()),
    ("data.threshold", "data.threshold=1", ("data.mask=semantic",)),
    ("data.foreground_ratio", "data.foreground_ratio=1", EMPTY),
    ("data.foreground_ratio", "data.foreground_ratio=1", ("batch.foreground_share=0.5",)),
    ("batch.foreground_share", "batch.foreground_share=0.5", EMPTY),
    ("augment.copy_paste", "augment.copy_paste=1", EMPTY),
    ("batch.positive_ratio", "batch.positive_ratio=0.5", EMPTY),
    ("batch.positive_ratio", "batch.positive_ratio=0.1", ("data.root=ALL_POSITIVE",)),
    ("split.seed", "split.seed=5", ("split.file=SPLIT",)),
    ("split.val_fraction", "split.val_fraction=0.4", ("split.file=SPLIT",)),
    ("split.test_fraction", "split.test_fraction=0.4", ("split.file=SPLIT",)),
    ("split.val_fraction", "split.val_fraction=0.4", ("split.folds=3",)),
    ("split.near_copies", "split.near_copies=ignore", ()),
    ("split.allow_faults", "split.allow_faults=true", ()),
    ("batch.labeled", "batch.labeled=3", ("policies.random_batch_size={smallest: 1, largest: 2}",)),
    ("batch.unlabeled", "batch.unlabeled=4", ("method.name=supervised",)),
    ("batch.unlabeled", "batch.unlabeled=4", ALL),
    ("method.name", "method.name=mean_teacher", (*ALL, *SUPERVISED)),
    ("method.options.consistency_weight", "method.options.consistency_weight=3", ALL),
    ("method.options.rampup_steps", "method.options.rampup_steps=7", ("method.options.consistency_weight=0",)),
    ("method.options.confidence", "method.options.confidence=0.9", (*ALL, "network.norm=batch")),
    ("method.options.confidence", "method.options.confidence=0.9", ("method.options.threshold=freematch",)),
    ("method.options.threshold_momentum", "method.options.threshold_momentum=0.5", ()),
    ("method.options.rampup_ratio", "method.options.rampup_ratio=1.0", ("method.options.rampup_steps=3",)),
    ("method.options.rampup", "method.options.rampup=linear", ("method.options.rampup_steps=0",)),
    ("method.options.rampup", "method.options.rampup=linear", ("method.options.rampup_ratio=0",)),
    ("method.options.rampup", "method.options.rampup=linear", (*PARENT, "bootstrap.pseudo_label_steps=4")),
    ("augment.intensity", "augment.intensity=0.9", (*SUPERVISED, "augment.labeled_factor=0")),
    ("augment.strong_factor", "augment.strong_factor=0", SUPERVISED),
    ("augment.labeled_factor", "augment.labeled_factor=3", ("augment.intensity=0",)),
    ("augment.rotation", "augment.rotation=20", ("augment.affine=0",)),
    ("augment.affine", "augment.affine=1", ("augment.rotation=0", "augment.scale=0")),
    ("augment.tilt", "augment.tilt=10", ("augment.affine=1",)),
    ("augment.cutout", "augment.cutout=0.9", SUPERVISED),
    ("augment.cutout", "augment.cutout=1", ALL),
    ("augment.cutmix", "augment.cutmix=1", SUPERVISED),
    ("augment.cutmix", "augment.cutmix=1", ("method.options.consistency_weight=0",)),
    ("augment.cutout", "augment.cutout=1", ("method.options.consistency_weight=0",)),
    ("method.options.consistency", "method.options.consistency=kl", ("method.options.consistency_weight=0",)),
    ("loss.options.dice.batch", "loss.options.dice.batch=false", ("batch.labeled=1",)),
    ("loss.options.focal.gamma", "loss.options.focal.gamma=1", (PHASES % (4, 1, 0),)),
    ("loss.phases.0", PHASES % (4, 1, 0), ()),
    ("loss.phases.0", PHASES % (2, 1, 0), ("loss.weights={focal: 1}",)),
    ("bootstrap.reset_head", "bootstrap.reset_head=true", (*PARENT, "bootstrap.parts=encoder")),
    ("optim.warmup_steps", "optim.warmup_steps=3", ("optim.schedule=one_cycle",)),
    ("optim.poly_power", "optim.poly_power=2", ("optim.schedule=cosine",)),
    ("optim.poly_power", "optim.poly_power=2", ("optim.floor=1",)),
    ("optim.floor", "optim.floor=0.5", ("optim.schedule=constant",)),
    ("optim.floor", "optim.floor=0.1", ("optim.schedule=reduce_on_plateau", "optim.plateau_patience=2", *FLAT)),
    ("optim.restart_epochs", "optim.restart_epochs=2", ()),
    ("optim.restart_growth", "optim.restart_growth=1", ()),
    ("optim.restart_growth", "optim.restart_growth=1", ("optim.schedule=cosine_restarts", "optim.restart_epochs=4")),
    ("optim.one_cycle_rise", "optim.one_cycle_rise=0.6", ()),
    ("optim.plateau_patience", "optim.plateau_patience=2", FLAT),
    ("optim.plateau_factor", "optim.plateau_factor=0.1", FLAT),
    ("optim.plateau_patience", "optim.plateau_patience=7", ("optim.schedule=constant", *FLAT)),
    ("optim.schedule", "optim.schedule=reduce_on_plateau",
     ("optim.schedule=constant", "optim.plateau_patience=7", *FLAT)),
    ("optim.lr_batch_size", "optim.lr_batch_size=8", ()),
    ("optim.lr_scaling", "optim.lr_scaling=linear", ("optim.lr_batch_size=2",)),
    ("ema.decay", "ema.decay=0.999", ()),
    ("ema.schedule", "ema.schedule=cosine", ("ema.schedule=linear", "ema.final_decay=1")),
    ("ema.final_decay", "ema.final_decay=0.999", ("ema.schedule=linear", "ema.final_decay=1")),
    ("ema.warmup", "ema.warmup=false", ("ema.decay=0",)),
    ("policies.swa.start_epoch", f"{SWA}.start_epoch=5", ()),
    ("policies.swa.every_epochs", f"{SWA}.every_epochs=3", (f"{SWA}.start_epoch=4",)),
    ("policies.weight_noise.std", f"{NOISE}={{start_epoch: 4, std: 0.1}}", ()),
    ("policies.weight_noise.every_epochs", f"{NOISE}.every_epochs=3", (f"{NOISE}={{start_epoch: 3, std: 0.1}}",)),
    ("policies.weight_noise.decay", f"{NOISE}.decay=0.5", (f"{NOISE}={{start_epoch: 3, std: 0.1}}",)),
    ("policies.plateau_response.patience", f"{RESPONSE}={{patience: 2, gain: 0}}", FLAT),
    ("policies.plateau_response.patience", f"{RESPONSE}={{patience: 7, base: 2}}", FLAT),
    ("policies.plateau_response.gain", f"{RESPONSE}.gain=0.5", (f"{RESPONSE}={{patience: 4, base: 2}}", *FLAT)),
    ("policies.plateau_response.cap", f"{RESPONSE}.cap=3", (f"{RESPONSE}={{patience: 4, base: 2}}", *FLAT)),
    ("policies.early_stopping.patience", "policies.early_stopping.patience=7", FLAT),
    ("monitor.patience_steps", "monitor.patience_steps=1", WILD),
    ("monitor.check_steps", "monitor.check_steps=4", WILD),
    ("monitor.check_steps", "monitor.check_steps=8", (*WILD, "length.steps_per_epoch=8")),
]  # fmt: skip


WATCHED = {"time", "notes", "train/seconds_per_step", "memory_gib"}
WATCHED |= {f"machine/{name}" for name in ("memory_gib", "seconds_per_epoch", "hours_to_go")}
WATCHED |= {f"train/{name}" for name in ("consistency", "pseudo_prevalence", "accepted_share")}
"""What no weight depends on: clocks, and what is measured of unlabeled patches even where it weighs nothing."""


@pytest.fixture(autouse=True)
def _timm(monkeypatch: pytest.MonkeyPatch) -> None:
    install_timm(monkeypatch)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders and files that settings name."""
    root = tmp_path_factory.mktemp("walk")
    found = {
        "DATA": write_images(root / "data", seed=0, labeled=12),
        "OTHER": write_images(root / "other", seed=1, labeled=12),
        "MORE": write_images(root / "more", seed=2, labeled=0),
        "ALL_LABELED": write_images(root / "all", seed=0, labeled=14),
        "ALL_POSITIVE": write_images(root / "positive", seed=0, labeled=12, negatives=False),
        "LARGE": write_images(root / "large", seed=0, labeled=12, size=144),
        "ARRAYS": write_images(root / "arrays", seed=0, labeled=12, suffix=".npy"),
        "VOLUMES": write_images(root / "volumes", seed=0, labeled=12, suffix=".npy", depth=16),
        "GAPS": write_images(root / "gaps", seed=0, labeled=12, suffix=".npy", gaps=True),
    }
    found["NEAR_COPIES"] = write_images(root / "copies", seed=0, labeled=12)
    for index in range(3, 9):
        for folder, gain in (("images", 0.9), ("masks", 1)):
            source = cv2.imread(str(root / "copies" / folder / f"{index % 3}.png"), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(
                str(root / "copies" / folder / f"{index}.png"), (source * gain + 3 * (gain < 1)).astype(np.uint8)
            )
    groups = root / "groups.csv"
    groups.write_text("name,group\n" + "".join(f"{n},{n % 5}\n" for n in range(14)))
    train(TrainRequest(tuple(make_layers(found, ("split.seed=3",))), root / "run"))
    split = load_split(root / "run" / "split.yaml")
    save_split(replace(split, content={name: text[::-1] for name, text in split.content.items()}), root / "faulty.yaml")
    found |= {"GROUPS": str(groups), "SPLIT": str(root / "run" / "split.yaml"), "FAULTY": str(root / "faulty.yaml")}
    train(TrainRequest(tuple(make_layers(found, ())), root / "parent"))
    pretrain(TrainRequest(tuple(make_layers(found, ("length.steps=2",))), root / "pretrained"))
    found["PSEUDO"] = write_pseudo_labels(root / "pseudo", load_split(root / "parent" / "split.yaml"))
    return found | {"PARENT": str(root / "parent" / "checkpoints" / "last.pt"), "PRETRAINED": str(root / "pretrained")}


def write_pseudo_labels(folder: Path, split: Split) -> str:
    """Write one pseudo-label, all foreground, of an unlabeled case."""
    folder.mkdir()
    np.save(folder / "0.npy", np.ones((40, 40), np.int16))
    case = {"id": split.pool_ids(0.5)[0], "file": "0.npy", "voxels": [0, 1600, 0], "kept": True}
    values = {"schema": 1, "label_values": [0, 1, 2], "seen_labels": [], "cases": [case]}
    (folder / "pseudo_labels.json").write_text(json.dumps(values))
    return str(folder)


def write_images(
    folder: Path,
    *,
    seed: int,
    labeled: int,
    negatives: bool = True,
    suffix: str = ".png",
    size: int = 40,
    gaps: bool = False,
    depth: int = 0,
) -> str:
    """Write 14 images, a quarter of them without foreground, and so many masks."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(14):
        mask = np.zeros((size, size), np.uint8)
        for value in (1, 2) if index % 4 or not negatives else ():
            y, x = rng.integers(0, 26, 2)
            mask[y : y + 13, x : x + 13] = value
        image = (mask * 60 + rng.integers(0, 100, mask.shape)).astype(np.uint8)
        image = np.where(np.arange(size) < 3, np.nan, image).astype(np.float32) if gaps else image
        if depth:
            image, mask = (np.repeat(array[None], depth, axis=0) for array in (image, mask))
        write = cv2.imwrite if suffix == ".png" else np.save
        write(str(folder / "images" / f"{index}{suffix}"), image)
        if index < labeled:
            write(str(folder / "masks" / f"{index}{suffix}"), mask)
    return str(folder)


def make_layers(places: dict[str, str], settings: Settings) -> list[Layer]:
    named = [re.sub(r"\b[A-Z_]{4,}\b", lambda found: places[found[0]], text) for text in settings if text != "parent"]
    base = Layer("base.yaml", {**BASE, "data": {**BASE["data"], "root": places["DATA"]}}, is_file=True)
    return [base, *map(parse_override, named)]


Trace = dict[str, Any]


@pytest.fixture
def run(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the function that trains with settings, and returns what that leaves behind and the warnings."""
    monkeypatch.setattr(
        training, "finish_run", lambda *_: (Verdict(), None)
    )  # scores of whole images, from what is kept
    return partial(run_once, places, tmp_path / "run")


@pytest.fixture(scope="module")
def known() -> dict[Settings, tuple[Trace, list[str]]]:
    """Runs that several settings are compared with."""
    return {}


@pytest.fixture
def run_known(run: Any, known: dict[Settings, tuple[Trace, list[str]]]) -> Any:
    """Return what ``run`` is, which makes no run twice."""

    def look_up(settings: Settings, before: Trace | None = None) -> tuple[Trace, list[str]]:
        if settings in known:
            return known[settings]
        found = run(settings, before)
        if DIFFERENT not in found[0]:
            known[settings] = found
        return found

    return look_up


DIFFERENT = "different"


class DifferentError(Exception):
    """A run has recorded what the one it is compared with has not."""


def run_once(
    places: dict[str, str], out: Path, settings: Settings, before: Trace | None = None
) -> tuple[Trace, list[str]]:
    """Train to the end, or until a record differs from that of the run before."""
    notes = Notes()
    parent = Path(places["PARENT"]) if "parent" in settings else None
    request = TrainRequest(tuple(make_layers(places, settings)), out, parent)
    append = directory.append_jsonl

    def append_and_compare(path: Path, record: Any) -> None:
        append(path, record)
        own = read_records(out, "metrics")
        if before is not None and own != before.get("metrics", own)[: len(own)]:
            raise DifferentError

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(directory, "append_jsonl", append_and_compare)
            result = train(request, notes)
        trace = {"ending": result.ending, **dict(read_run(out)), "split": (out / "split.yaml").read_text()}
    except SslSegError as error:
        return {"refused": type(error)}, notes.texts
    except DifferentError:
        trace = {DIFFERENT: True}
    shutil.rmtree(out)
    return trace, notes.texts


def read_records(out: Path, name: str) -> list[dict[str, Any]]:
    path = out / f"{name}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [{k: v for k, v in line.items() if k not in WATCHED} for line in lines]
    return [line for line in kept if line.get("event") != "plateau" or line["multiplier"] != 1]


def read_run(out: Path) -> Iterator[tuple[str, Any]]:
    for name in ("metrics", "events"):
        yield name, read_records(out, name)
    for path in sorted((out / "checkpoints").iterdir()):
        content = torch.load(path, weights_only=True)
        yield (
            path.name,
            {
                name: digest(content[name])
                for name in ("student", "teacher", "optimizer", "progress", "swa")
                if name in content
            },
        )


def digest(value: Any) -> str:
    if isinstance(value, Tensor):
        return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return str({key: digest(item) for key, item in value.items()})
    return str([digest(item) for item in value]) if isinstance(value, list | tuple) else repr(value)


def said_of(key: str, notes: list[str]) -> list[str]:
    """Return the warnings that a setting changes nothing."""
    told = [text for text in notes if "changes_nothing" in text]
    return [
        text for text in told if re.search(rf"(?<![\w.]){re.escape(key)}[\w.]* = ", text.split(" nothing in this")[0])
    ]


def compare(run: Any, change: str, shared: Settings) -> tuple[bool, list[str]]:
    """Return whether a setting changes anything, and what is said about the changed run."""
    before, _ = run(shared)
    after, notes = run((*shared, change), before)
    return before != after, notes


def test_all_settings_are_walked() -> None:
    sections = {key.rpartition(".")[0] for key in list_settings(Config, "")}
    options = {f"method.options.{name}" for method in METHODS.values() for name in method.config_type.model_fields}
    leaves = {key for key in list_settings(Config, "") if key not in sections or key == "loss.phases"}
    assert set(ACTS) | MACHINE == (leaves | options) - {"method.options"}
    assert not set(ACTS) & MACHINE


@pytest.mark.parametrize("key", ACTS)
def test_a_setting_changes_the_training_and_nobody_says_it_does_not(run_known: Any, key: str) -> None:
    change, shared = ACTS[key]
    acts, notes = compare(run_known, change, shared)
    assert acts, f"{change} changes nothing with {shared}"
    assert said_of(key, notes) == []


@pytest.mark.parametrize(("key", "change", "shared"), IDLE, ids=[f"{n}-{k}" for n, (k, _, _) in enumerate(IDLE)])
def test_a_setting_that_changes_nothing_is_a_warning(run_known: Any, key: str, change: str, shared: Settings) -> None:
    acts, notes = compare(run_known, change, shared)
    assert not acts
    (text,) = said_of(key, notes)
    assert re.search(
        rf"changes_nothing: .*{re.escape(key)}\S* = .*\((--set|.*: ).* nothing in this run: .*\. [A-Z].*", text
    )


def test_two_equal_runs_leave_the_same_behind(run: Any) -> None:
    """Or all settings would seem to act."""
    (first, _), (second, _) = run(()), run(())  # what is said names the machine's memory so far
    assert first == second


def test_the_walk_finds_a_dead_setting(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "optim.weight_decay"
    change, shared = ACTS[key]
    assert compare(run, change, shared)[0]
    real = assembly.make_optimizer
    alive = {"weight_decay": 0.01}
    monkeypatch.setattr(
        assembly, "make_optimizer", lambda net, optim, encoder: real(net, optim.model_copy(update=alive), encoder)
    )
    acts, notes = compare(run, change, shared)
    assert not acts
    assert said_of(key, notes) == []


def test_the_walk_finds_a_warning_too_many(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    false = Condition(("optim.weight_decay",), lambda _, __: "it is late", "Go home")
    monkeypatch.setattr(idle, "CONDITIONS", (*CONDITIONS, false))
    acts, notes = compare(run, *ACTS["optim.weight_decay"])
    assert acts
    assert said_of("optim.weight_decay", notes)


def test_every_condition_is_walked(places: dict[str, str]) -> None:
    """Each row of the table, and each derived one, has a run in which it holds something back."""
    blocking, derived = set(), set()
    for _, change, shared in IDLE:
        parent = Path(places["PARENT"]) if "parent" in shared else None
        layers = make_layers(places, (*shared, change))
        plan = replace(resolve(TrainRequest(tuple(layers), bootstrap=parent)), faults=())
        facts = gather_facts(plan)
        blocking |= {c.keys for c in CONDITIONS if c.find_obstacle(plan.config, facts)}
        derived |= {c.keys[0] for c in list_derived(plan.config)}
    assert {condition.keys for condition in CONDITIONS} == blocking
    assert derived == {
        "loss.phases.0", "loss.options.focal", "optim.schedule",
        *(f"policies.{name}" for name in ("swa", "weight_noise", "plateau_response", "early_stopping")),
    }  # fmt: skip


LOSS_VALUES: dict[str, Any] = {"class_weights": [1.0, 2.0, 0.5], "alpha": 0.45, "iterations": 1, "exponent": 1.0}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_every_option_of_a_loss_changes_it(name: str, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, num_classes, 12, 12, generator=generator)
    target = (logits + torch.randn(logits.shape, generator=generator)).argmax(dim=1)
    target[0, :4] = 0  # the two patches differ in their foreground
    before = bind_options(name, {})(logits, target)
    for option, default in list_options(name).items():
        value = LOSS_VALUES.get(option, not default if isinstance(default, bool) else None)
        value = 2.5 * default if value is None else value[:num_classes] if isinstance(value, list) else value
        assert bind_options(name, {option: value})(logits, target) != before, option


@pytest.mark.parametrize("name", NETWORKS)
def test_features_and_norms_change_every_network(name: str) -> None:
    def build(**values: Any) -> str:
        torch.manual_seed(0)
        with torch.device("meta"):
            return str(build_network(name, ndim=2, channels=1, num_classes=2, patch_size=(64, 64), **values))

    assert len({build(norm=norm) for norm in ("instance", "group", "batch")}) == 3
    if not NETWORKS[name].fixed_features:
        assert build(features=NETWORKS[name].default_features // 2) != build()
