"""Pictures for the page of a set: the same pixels in fewer bytes."""

import io
from pathlib import Path

from PIL import Image


def shrink(png: Path) -> Path | None:
    """Write a picture again as lossless WebP beside it, where that is smaller; None where it is not.

    A page of many pictures holds them all, and matplotlib's are a third as large this way.
    """
    with Image.open(png) as opened:
        content = io.BytesIO()
        # exact: pixels that cannot be seen keep their colour too
        opened.save(content, "WEBP", lossless=True, exact=True, method=2)
    if len(content.getvalue()) >= png.stat().st_size:
        return None
    small = png.with_suffix(".webp")
    small.write_bytes(content.getvalue())
    return small
