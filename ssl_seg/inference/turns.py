"""Test-time augmentation: windows are predicted mirrored and turned as well, and turned back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Turn:
    """Mirrors windows (N,C,*P) along the axes ``flips``, counted from the end, then turns by a quarter in (Y, X)."""

    flips: tuple[int, ...] = ()
    quarter: bool = False

    def apply(self, windows: Tensor) -> Tensor:
        """Return the windows turned."""
        flipped = windows.flip(self.flips)
        return flipped.rot90(1, (-2, -1)) if self.quarter else flipped

    def undo(self, windows: Tensor) -> Tensor:
        """Return the windows that ``apply`` was given."""
        return (windows.rot90(-1, (-2, -1)) if self.quarter else windows).flip(self.flips)


def list_turns(patch: Sequence[int], spacing: Sequence[float] | None) -> tuple[Turn, ...]:
    """Return all ways to mirror windows (*P), and, where windows and voxels (unknown ones too) are square in (Y, X), to
    turn them: 8 in 2D and 16 in 3D, else half as many."""
    axes = range(-len(patch), 0)
    flips = [own for count in range(len(patch) + 1) for own in itertools.combinations(axes, count)]
    square = patch[-1] == patch[-2] and (spacing is None or math.isclose(spacing[-1], spacing[-2], rel_tol=1e-3))
    return tuple(Turn(own, quarter) for quarter in (False, True)[: 1 + square] for own in flips)
