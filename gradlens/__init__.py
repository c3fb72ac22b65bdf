"""Why does this image classifier resist gradient attacks? Any nn.Module in, frozen results out."""

from . import losses
from .attacks import PGDTrace, pgd
from .ball import Ball
from .entropy import Entropy, entropy
from .landscape import Surface, input_line, input_plane
from .model import Normalized, frozen, predict
from .provenance import Made
from .stability import Stability, stability
from .store import load, save

__all__ = [
    "Ball",
    "Entropy",
    "Made",
    "Normalized",
    "PGDTrace",
    "Stability",
    "Surface",
    "entropy",
    "frozen",
    "input_line",
    "input_plane",
    "load",
    "losses",
    "pgd",
    "predict",
    "save",
    "stability",
]
