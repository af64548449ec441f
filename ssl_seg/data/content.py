"""What identifies a case, whatever its files are called: 16 hex digits, 12 of its image, then 4 of its mask."""

from __future__ import annotations

IMAGE_DIGITS, MASK_DIGITS = 12, 4


def make_content(image_digest: str, mask_digest: str | None) -> str:
    """Return the content of a case from hex digests of its decoded image and mask; zeros stand for no mask."""
    return image_digest[:IMAGE_DIGITS] + ("0" * MASK_DIGITS if mask_digest is None else mask_digest[:MASK_DIGITS])


def image_of(content: str) -> str:
    """Return what identifies the image alone, so that it is found again when its mask is new, lost or changed."""
    return content[:IMAGE_DIGITS]
