"""A prediction too large for memory, in pieces on disk: made by one process or several, in any order.

::

    OUT/.NAME.KEY.pieces/plan.json        what the pieces are of
    OUT/.NAME.KEY.pieces/00012_prob.npy   a piece of a further output
    OUT/.NAME.KEY.pieces/00012.npy        a piece of the mask, written last: with it, piece 12 is done
    OUT/.NAME.KEY.pieces/00012.lock       held by the process that makes piece 12

A piece has the same bits whoever makes it, so a killed call loses the piece it was at, and two processes that make the
same one do no harm. Shapes: *S spatial = (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ssl_seg.data.formats.stored import LazyArray
from ssl_seg.files import atomic_write, take_lock
from ssl_seg.inference.stitching import Box, divide_laterally
from ssl_seg.results.claims import WAIT, try_lock

WHOLE_VOXELS = 2**24
"""An image of more voxels is predicted in pieces."""
PIECE_VOXELS = 2**24
"""Voxels of a piece, unless it would be lower than a window."""
PLAN = "plan.json"

Outputs = Mapping[str, NDArray[Any]]
"""What is written of an image, or of some rows: the mask under "", others under what is put behind its name."""
PredictRows = Callable[[Box], Generator[tuple[int, Outputs], None, None]]
"""Yields the first row and the outputs of some rows of a box, one behind the other."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of one image (*S), in a folder that holds the plan. Neighbors along the rows have numbers in a row."""

    folder: Path
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    def make(self, predict: PredictRows) -> Iterator[int]:
        """Make all pieces that no other process makes; yield the number of each that gets done, whoever makes it.

        Ends when all are done, or when another process has finished the whole.
        """
        told = self._find_done()
        while True:
            for number in sorted(self._find_done() - told):
                told.add(number)
                yield number
            if len(told) == len(self.boxes) or self.is_finished:
                return
            try:
                if (claimed := self._claim(sorted(set(range(len(self.boxes))) - told))) is None:
                    time.sleep(WAIT)
                    continue
                for number in self._make_run(*claimed, predict):
                    told.add(number)
                    yield number
            except FileNotFoundError:
                if not self.is_finished:
                    raise

    @property
    def left(self) -> int:
        """How many pieces are not done."""
        return len(self.boxes) - len(self._find_done())

    @property
    def is_finished(self) -> bool:
        """Whether another process has put the pieces together and removed them."""
        return not (self.folder / PLAN).exists()

    def finish(self, write: Callable[[], None]) -> bool:
        """Write the outputs and remove the pieces; return False where another process has done so."""
        own, lock = False, FileLock(self.folder / "finish.lock")
        try:
            take_lock(lock)
            if not self.is_finished:
                write()
                (self.folder / PLAN).unlink()
                own = True
        except FileNotFoundError:
            if not self.is_finished:
                raise
        finally:
            lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)
        return own

    def open(self, name: str) -> LazyArray:
        """Return one of the outputs, put together."""
        dtype = np.load(self._path(0, name), mmap_mode="r").dtype

        def read(wanted: slice) -> NDArray[Any]:
            start, stop, _ = wanted.indices(self.shape[0])
            found = np.empty((stop - start, *self.shape[1:]), dtype)
            for number, (rows, *lateral) in enumerate(self.boxes):
                first, last = max(start, rows.start), min(stop, rows.stop)
                if first < last:
                    piece = np.load(self._path(number, name), mmap_mode="r")[first - rows.start : last - rows.start]
                    found[(slice(first - start, last - start), *lateral)] = piece
            return found

        return LazyArray(self.shape, dtype, read)

    def _find_done(self) -> set[int]:
        return {number for number in range(len(self.boxes)) if self._path(number, "").exists()}

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number:05}{name}.npy"

    def _claim(self, undone: Sequence[int]) -> tuple[int, FileLock] | None:
        """Return the piece to go on with, locked: the first, or the middle of the longest run that no one works on."""
        locks = {n: lock for n in undone if (lock := self._lock(n)) is not None}
        free = list(locks)
        runs = np.split(free, np.flatnonzero(np.diff(free) > 1) + 1)
        longest = max(runs, key=len)
        chosen = None if not free else free[0] if len(free) == len(undone) else int(longest[len(longest) // 2])
        for number, lock in locks.items():
            if number != chosen:
                lock.release()
        return None if chosen is None else (chosen, locks[chosen])

    def _lock(self, number: int) -> FileLock | None:
        return try_lock(self.folder / f"{number:05}.lock")

    def _make_run(self, number: int, lock: FileLock, predict: PredictRows) -> Iterator[int]:
        """Make a piece and those that follow it, until one is done or somebody works on it; yield their numbers."""
        own = self.boxes[number]
        end = number + 1
        while end < len(self.boxes) and self.boxes[end][1:] == own[1:] and not self._path(end, "").exists():
            end += 1
        parts: list[Outputs] = []
        try:
            with closing(predict((slice(own[0].start, self.boxes[end - 1][0].stop), *own[1:]))) as found:
                for first, outputs in found:
                    parts.append(outputs)
                    stop = first + len(outputs[""])
                    while number < end and stop >= (rows := self.boxes[number][0]).stop:
                        whole = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
                        size = rows.stop - rows.start
                        self._save(number, {name: array[:size] for name, array in whole.items()})
                        parts = [{name: array[size:] for name, array in whole.items()}]
                        yield number
                        number += 1
                        lock.release()
                        if (
                            number == end
                            or self._path(number, "").exists()
                            or (following := self._lock(number)) is None
                        ):
                            return
                        lock = following
        finally:
            lock.release()

    def _save(self, number: int, outputs: Outputs) -> None:
        for name in sorted(outputs, reverse=True):  # the mask comes last
            with atomic_write(self._path(number, name)) as temporary, temporary.open("wb") as file:
                array = np.ascontiguousarray(outputs[name])
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(array.data)  # np.save says nothing of a full disk


def divide(shape: Sequence[int], patch: Sequence[int]) -> tuple[Box, ...]:
    """Return the boxes of the pieces of an image (*S): all rows of one block, then those of the next."""
    pieces = []
    for rows, *lateral in divide_laterally(shape, patch):
        height = max(patch[0], PIECE_VOXELS // prod(part.stop - part.start for part in lateral))
        pieces += [(slice(first, min(first + height, rows.stop)), *lateral) for first in range(0, rows.stop, height)]
    return tuple(pieces)
