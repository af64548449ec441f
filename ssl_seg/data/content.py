"""What identifies a case, whatever its files are called: 16 hex digits, 12 of its image, then 4 of its mask."""

from __future__ import annotations

IMAGE_DIGITS, MASK_DIGITS = 12, 4
_CONSTANT = "ffffffff"
"""How the digits of an image of a single value begin; one in four billion others does too."""


def make_content(image_digest: str, mask_digest: str | None, *, constant: bool = False) -> str:
    """Return the content of a case from hex digests of its decoded image and mask; zeros stand for no mask."""
    image = (_CONSTANT * constant + image_digest)[:IMAGE_DIGITS]
    return image + ("0" * MASK_DIGITS if mask_digest is None else mask_digest[:MASK_DIGITS])


def image_of(content: str) -> str:
    """Return the digits of the image alone, so that it is found again when its mask is new, lost or changed."""
    return content[:IMAGE_DIGITS]


def is_constant(content: str) -> bool:
    """Return whether the image has a single value: blank images are equal and still no copies of each other."""
    return content.startswith(_CONSTANT)
