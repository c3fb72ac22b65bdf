"""Loss landscapes: the loss along chosen directions through an image, and along an attack's own path."""

from .input import input_line, input_plane
from .known import selftest
from .path import InputPath, input_path
from .surface import Surface

__all__ = ["InputPath", "Surface", "input_line", "input_path", "input_plane", "selftest"]
