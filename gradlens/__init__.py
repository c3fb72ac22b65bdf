"""Why does this image classifier resist gradient attacks? Any nn.Module in, frozen results out."""

from . import losses
from .attacks import Distances, PGDTrace, apgd, apgd_targeted, fgsm, minimum_norm, pgd, target_classes
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
    "Distances",
    "Entropy",
    "Gradients",
    "InputPath",
    "Made",
    "Normalized",
    "PGDTrace",
    "Spectrum",
    "Stability",
    "Surface",
    "Trajectory",
    "WeightSurface",
    "apgd",
    "apgd_targeted",
    "compare",
    "entropy",
    "fgsm",
    "frozen",
    "gradients",
    "input_line",
    "input_path",
    "input_plane",
    "interpolate",
    "load",
    "losses",
    "minimum_norm",
    "pgd",
    "predict",
    "save",
    "spectrum",
    "stability",
    "target_classes",
    "trajectory",
    "weight_line",
    "weight_plane",
]
