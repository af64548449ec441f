"""A picture of a few patches of the validation probe: what the networks make of the same patches at each look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_seg.data.loader import Probe, make_probe
from ssl_seg.data.open import open_data, open_store
from ssl_seg.data.pictures import find_fullest, stretch
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.inference.model import open_model
from ssl_seg.losses.supervised import first_head
from ssl_seg.networks.precision import Autocast
from ssl_seg.run.directory import RunDir

SHOWN = 4
"""Patches in a picture, those with foreground first."""
GAP = 2
"""White pixels between them."""


@torch.no_grad()
def draw_probe(
    nets: Mapping[str, nn.Module], probe: Probe, device: torch.device, autocast: Autocast
) -> NDArray[np.uint8]:
    """Return a gray picture (H, W): of each patch its input, its truth, and the foreground probability of each network.

    Of a volume, the slice with the most true foreground. Ignored voxels are gray in the truth.

    Args:
        nets: by name, on ``device``; their train/eval mode is restored.
        probe: at least one patch.
        device: where the networks are.
        autocast: function that returns the autocast context of the run.
    """
    order = sorted(range(len(probe.image)), key=lambda n: not bool((probe.target[n] > 0).any()))[:SHOWN]
    images, targets = probe.image[order], probe.target[order]
    columns = [torch.from_numpy(np.stack([stretch(image) for image in images[:, 0].numpy()])).float(), _paint(targets)]
    for net in nets.values():
        was_training = net.training
        net.eval()
        with autocast():
            logits = first_head(net(images.to(device)), targets.ndim)
        net.train(was_training)
        columns.append(1 - logits.float().softmax(1)[:, 0].cpu())
    planes = [_choose_plane(target) for target in targets]
    rows = [[_add_gap(column[n][plane]) for column in columns] for n, plane in enumerate(planes)]
    picture = torch.cat([torch.cat(row, dim=1) for row in rows])[GAP:, GAP:]
    pixels: NDArray[np.uint8] = (picture.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return pixels


def draw_checkpoints(run: RunDir) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield step and picture of best.pt and last.pt, as far as they are there and of different steps.

    Raises:
        SslSegError: for an unusable checkpoint, or data that are not where they were.
    """
    seen: set[int] = set()
    for path in filter(lambda path: path.is_file(), (run.best, run.last)):
        model = open_model(path)
        config, split = model.config, split_from_dict(model.checkpoint.split)
        step = model.checkpoint.progress.step
        if step in seen:
            continue
        seen.add(step)
        store = open_store(open_data(config.data.model_dump(mode="json")), config.data)
        probe = make_probe(store, split.val, config.monitor.probe_patches, config.data.patch_size, split.seed)
        yield step, draw_probe(model.nets, probe, model.device, model.autocast)


def _paint(target: Tensor) -> Tensor:
    return torch.where(target < 0, 0.5, (target > 0).float())


def _choose_plane(target: Tensor) -> int | slice:
    if target.ndim == 2:
        return slice(None)
    return find_fullest((target > 0).sum(dim=(1, 2)).numpy())


def _add_gap(panel: Tensor) -> Tensor:
    return nn.functional.pad(panel, (GAP, 0, GAP, 0), value=1.0)
