"""Tell images from masks by the names of folders and files, and which mask belongs to which image.

An id is the path of an image without its suffix, with forward slashes, in the composed Unicode form (NFC).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

IMAGE_WORDS = (
    "images", "image", "imgs", "img", "raw", "inputs", "input", "photos", "photo", "pictures", "scans", "jpegimages",
    "originals", "original",
)  # fmt: skip
MASK_WORDS = (
    "1stmanual", "manual1", "manual",  # beside these, mask/ is the field of view
    "masks", "mask", "cpmasks", "labels", "label", "segmentations", "segmentation", "segs", "seg", "annotations",
    "annotation", "ann", "anns", "gt", "gts", "groundtruth", "truth", "targets", "target", "instances", "instance",
    "inklabels", "segmentationclass", "segmentationobject", "labelmaps",
)  # fmt: skip
"""Where several fit equally many images, the first is taken."""
_IMAGES, _MASKS = frozenset(IMAGE_WORDS), frozenset(MASK_WORDS)
PARTS = {name: part for part, names in {
    "train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing"),
}.items() for name in names}  # fmt: skip
UNLABELED = ("unlabeled", "unlabelled")
_FILLERS = ("dir", "folder", "png", "tif", "files")

_ENDINGS = re.compile(r"(?<=.)(\.(ome|png|jpe?g|tiff?|bmp))+$", re.IGNORECASE)
_TOKEN = re.compile(r"[^_\-. ]+")

Role = Literal["image", "mask"]


@dataclass(frozen=True)
class Place:
    """Where a file lies: the ``role`` of the innermost folder that has one, its ``word``, and the path without it.

    ``bare`` is the path without any folder that has a role.
    """

    role: Role | None
    word: str
    id: str
    bare: str


def find_parts(ids: Iterable[str]) -> dict[str, str]:
    """Return id -> train, val or test, by the outermost folder called so; nothing for what lies in unlabeled/."""
    folders = {case_id: case_id.casefold().split("/")[:-1] for case_id in ids}
    named = {i: [PARTS[name] for name in names if name in PARTS] for i, names in folders.items()}
    return {i: parts[0] for i, parts in named.items() if parts and folders[i][0].rstrip("+") not in UNLABELED}


@cache
def role_of(folder: str) -> tuple[Role | None, str, str]:
    """Return the role that the name of a folder gives, the word that does, and the part (train, val, test) in it."""
    tokens = re.findall(r"[a-z0-9]+", folder.casefold())
    word = "".join(token for token in tokens if token not in PARTS and token not in _FILLERS)
    role: Role | None = "image" if word in _IMAGES else "mask" if word in _MASKS else None
    return role, word, "/".join(PARTS[token] for token in tokens if token in PARTS)


def place_of(name: str) -> Place:
    """Return what the folders in a path without suffix say; ``train_images/a`` and ``train/images/a`` are ``train/a``.

    Args:
        name: with forward slashes.
    """
    *folders, stem = name.split("/")
    roles = [role_of(folder) for folder in folders]
    inner = max((n for n, found in enumerate(roles) if found[0]), default=None)
    if inner is None:
        return Place(None, "", name, name)
    kept = [roles[n][2] if n == inner else folder for n, folder in enumerate(folders)]
    bare = [found[2] if found[0] else folder for folder, found in zip(folders, roles, strict=True)]
    return Place(roles[inner][0], roles[inner][1], *("/".join([*filter(None, parts), stem]) for parts in (kept, bare)))


def split_marker(case_id: str) -> tuple[str, str] | None:
    """Return the id of the image that a mask names in its own name, and the marker in it; None for other names.

    ``a_mask``, ``a-Labels`` and ``GT a`` give ``a`` with ``_mask``, ``-labels`` and ``gt `` (in lower case).
    """
    folder, slash, stem = case_id.rpartition("/")
    start, stop = _find_core(stem, _MASKS)
    if (start, stop) == (0, len(stem)):
        return None
    return f"{folder}{slash}{stem[start:stop]}", (stem[stop:] if start == 0 else stem[:start]).casefold()


def _find_core(stem: str, words: Collection[str]) -> tuple[int, int]:
    """Return where a name begins and ends without one of ``words`` behind it, or else before it."""
    tokens = list(_TOKEN.finditer(stem))
    if len(tokens) < 2 or tokens[-1].end() < len(stem) or tokens[0].start() > 0:
        return 0, len(stem)
    texts = [token[0].casefold() for token in tokens]
    for size in (2, 1):  # two for ground_truth
        if len(tokens) > size and "".join(texts[-size:]) in words:
            return 0, tokens[-size - 1].end()
    for size in (2, 1):
        if len(tokens) > size and "".join(texts[:size]) in words:
            return tokens[size].start(), len(stem)
    return 0, len(stem)


def loose_key(case_id: str) -> str:
    """Return the part that names of an image and its mask share: no case, no ``img_``, ``_image``, ``_mask``, and no
    ending of an image in front of its own, as in ``a.ome.tif`` and ``a.jpg.png``."""
    folder, slash, stem = case_id.rpartition("/")
    for words in (_MASKS, _IMAGES):
        start, stop = _find_core(_ENDINGS.sub("", stem), words)
        stem = stem[start:stop]
    stem = _ENDINGS.sub("", stem)
    return f"{folder}{slash}{stem}".casefold()


def match_names(images: Collection[str], masks: Mapping[str, str]) -> dict[str, str]:
    """Return mask -> image: those of one id, then those whose ``loose_key`` only one mask and one image have.

    Args:
        images: ids.
        masks: mask -> a second name for it.
    """
    matched = {mask: name for mask, second in masks.items() for name in (mask, second) if name in images}
    matched |= {mask: mask for mask in masks if mask in images}
    owners: dict[str, str] = {}
    for mask, image in matched.items():
        owners[image] = min(owners.get(image, mask), mask, key=lambda m, i=image: (m != i, m))  # type: ignore[misc]
    matched = {mask: image for image, mask in owners.items()}
    left = [mask for mask in masks if mask not in matched]
    if not left:
        return matched
    keys, own = {image: loose_key(image) for image in images}, {mask: loose_key(mask) for mask in left}
    count, wanted = Counter(keys.values()), Counter(own.values())
    free = {key: image for image, key in keys.items() if count[key] == 1 and image not in owners}
    return matched | {mask: free[key] for mask, key in own.items() if key in free and wanted[key] == 1}
