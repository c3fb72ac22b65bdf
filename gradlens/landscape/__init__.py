"""Loss landscapes: the loss along chosen directions through an image."""

from .input import input_line, input_plane
from .surface import Surface

__all__ = ["Surface", "input_line", "input_plane"]
