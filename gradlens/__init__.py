"""Why does this image classifier resist gradient attacks? Any nn.Module in, frozen results out."""

from . import losses
from .attacks import PGDTrace, QueryTrace, hopskipjump, nes, pgd, rays, square
from .ball import Ball
from .compare import compare
from .curvature import Spectrum, spectrum
from .door import predict
from .entropy import Entropy, entropy
from .gradients import Gradients, gradients
from .landscape import (
    InputPath,
    Surface,
    Trajectory,
    WeightSurface,
    input_line,
    input_path,
    input_plane,
    interpolate,
    trajectory,
    weight_line,
    weight_plane,
)
from .model import Normalized, frozen
from .provenance import Made
from .stability import Stability, stability
from .store import load, save

__all__ = [
    "Ball",
    "Entropy",
    "Gradients",
    "InputPath",
    "Made",
    "Normalized",
    "PGDTrace",
    "QueryTrace",
    "Spectrum",
    "Stability",
    "Surface",
    "Trajectory",
    "WeightSurface",
    "compare",
    "entropy",
    "frozen",
    "gradients",
    "hopskipjump",
    "input_line",
    "input_path",
    "input_plane",
    "interpolate",
    "load",
    "losses",
    "nes",
    "pgd",
    "predict",
    "rays",
    "save",
    "spectrum",
    "square",
    "stability",
    "trajectory",
    "weight_line",
    "weight_plane",
]
