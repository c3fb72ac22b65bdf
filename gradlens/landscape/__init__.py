"""Loss landscapes: along directions through an image or a model's weights, and along an attack's own path."""

from .directions import normalize, random_directions
from .input import input_line, input_plane
from .known import selftest, weight_selftest
from .path import InputPath, input_path
from .surface import Surface
from .trajectory import Trajectory, trajectory
from .weight import interpolate, weight_line, weight_plane
from .weight_surface import WeightSurface

__all__ = [
    "InputPath",
    "Surface",
    "Trajectory",
    "WeightSurface",
    "input_line",
    "input_path",
    "input_plane",
    "interpolate",
    "normalize",
    "random_directions",
    "selftest",
    "trajectory",
    "weight_line",
    "weight_plane",
    "weight_selftest",
]
