"""The exceptions a user can meet.

::

    SslSegError              exit code 2: the user can fix it
    ├── ConfigError          a key, a value or a combination of values in a configuration
    ├── DataError            a folder, an image, a mask or a group file
    ├── SplitError           a split file, or a split that cannot be made
    ├── NetworkError         an unknown network, or a patch size it cannot take
    ├── CheckpointError      a file that is no checkpoint of ours, or does not fit
    ├── RunDirError          a run directory that exists already, or is none
    │   └── InUseError       another process works in the directory
    ├── MachineError         memory or another process of the run has given out
    └── RefusedError         exit code 3: stopped by the monitor or refused by a gate

Messages say which value, where it was set, the rule, and what to do instead.
"""

from __future__ import annotations

import difflib
import errno
import re
import shlex
from bisect import bisect
from collections.abc import Iterable
from pathlib import Path
from unicodedata import category


class SslSegError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 2


class ConfigError(SslSegError):
    """A configuration key, value or combination is not usable."""


class DataError(SslSegError):
    """Images, masks or their folder are not usable."""


class SplitError(SslSegError):
    """A split file is not usable, or the split asked for cannot be made."""


class NetworkError(SslSegError):
    """The network is unknown, or cannot take the given patch size."""


class CheckpointError(SslSegError):
    """A file is no checkpoint of this program, or does not fit the run."""


class RunDirError(SslSegError):
    """A run directory exists already, or is not one."""


class InUseError(RunDirError):
    """Another process works in the directory."""


class MachineError(SslSegError):
    """The machine cannot do what the settings ask of it: memory, or another process of the run."""


class RefusedError(SslSegError):
    """The monitor stopped the run, or a gate refused to start it."""

    exit_code = 3


_COMPARED = 1000
"""Words that a wrong one is compared with; of more, those that stand nearest to it in order."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known word, or an empty string."""
    words = sorted(known)
    first = max(0, min(bisect(words, word) - _COMPARED // 2, len(words) - _COMPARED))
    nearest = difflib.get_close_matches(word, words[first : first + _COMPARED], n=1, cutoff=0.5)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


def did_you_mean_path(path: Path) -> str:
    """Return the same for a path that is not there, by what lies beside it; nothing where that cannot be listed."""
    try:
        return did_you_mean(path.name, [found.name for found in path.parent.iterdir()])
    except OSError:
        return ""


def name_examples(items: Iterable[object], most: int = 3, *, between: str = ", ", total: int | None = None) -> str:
    """Return the first ``most`` items and how many there are beyond: ``a, b, c, ... (4 more)``.

    Args:
        items: their texts are taken.
        most: items to name.
        between: separates them.
        total: how many there are, if ``items`` are only the first of them.
    """
    texts = [str(item) for item in items]
    more = (len(texts) if total is None else total) - min(most, len(texts))
    return between.join([*texts[:most], *[f"... ({more} more)"] * (more > 0)])


_SINGULAR = {"are": "is", "have": "has", "were": "was", "do": "does"}


def counted(number: int, noun: str, verb: str = "") -> str:
    """Return a number with its noun, and with words up to a verb in the plural, which agrees: ``1 case``, ``2 cases of
    val are``, and ``1 case of val is``."""
    if number == 1 and verb:
        *words, last = verb.split(" ")
        verb = " ".join([*words, _SINGULAR.get(last, f"{last}s")])
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}" + f" {verb}" * bool(verb)


def quote(path: Path | str) -> str:
    """Return a path as it is written in a command."""
    return shlex.quote(str(path))


_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|cannot allocate memory|unable to allocate|out of memory|"
    r"insufficient memory|bad_alloc|_ALLOC_FAILED|cudaErrorMemoryAllocation|caught (_Array)?MemoryError|"
    r"worker .*is killed by signal: Killed|can't start new thread",
    re.IGNORECASE,
)
"""What libraries say when they get no memory and have no exception of their own for it: the allocators of PyTorch for
CPU, CUDA and MPS, cuBLAS and cuDNN, NumPy, OpenCV, and a loader's process that the system killed."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether a lack of memory, of the machine or of its GPU, is among the causes of an error."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without torch
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if not isinstance(error, SslSegError) and _OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def printable(text: object) -> str:
    """Return a text in which nothing can steer a terminal or forge a line.

    Control characters, line ends, invisible marks and those that turn the direction of writing stand as escapes such as
    ``\\x1b``, and so do bytes of a file name that are no text. Spaces of any width and the joiners of emoji stay.
    """
    return "".join(
        char if char.isprintable() or char in _JOINERS or category(char) == "Zs" else _escape(char)
        for char in str(text)
    )


def printable_lines(text: object) -> str:
    """Return a message whose lines are each as ``printable`` writes them."""
    return "\n".join(map(printable, str(text).split("\n")))


_JOINERS = "\u200c\u200d"


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
