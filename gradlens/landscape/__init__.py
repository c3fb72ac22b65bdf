"""Loss landscapes: the loss along chosen directions through an image, or through the weights of a model."""

from .directions import normalize, random_directions
from .input import input_line, input_plane
from .surface import Surface
from .trajectory import Trajectory, trajectory
from .weight import interpolate, weight_line, weight_plane
from .weight_surface import WeightSurface

__all__ = [
    "Surface",
    "Trajectory",
    "WeightSurface",
    "input_line",
    "input_plane",
    "interpolate",
    "normalize",
    "random_directions",
    "trajectory",
    "weight_line",
    "weight_plane",
]
