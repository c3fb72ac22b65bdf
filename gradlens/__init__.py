"""Why does this image classifier resist gradient attacks? Any nn.Module in, frozen results out."""

from . import claims, display, losses, store
from .attacks import (
    Distances,
    PGDTrace,
    QueryTrace,
    apgd,
    apgd_targeted,
    fgsm,
    hopskipjump,
    minimum_norm,
    nes,
    pgd,
    pgd_targeted,
    rays,
    square,
    target_classes,
)
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
from .masking import Evidence, Masking, Planted, masking, planted
from .model import Normalized, frozen
from .prepared import Prepared, prepare
from .provenance import Made
from .robustness import (
    FULL,
    QUICK,
    RANDOMISED,
    STANDARD,
    Attack,
    Curve,
    Robustness,
    Transfer,
    auto_attack,
    curve,
    exchange,
    robustness,
    transfer,
)
from .stability import Stability, stability
from .store import load, save

__all__ = [
    "FULL",
    "QUICK",
    "RANDOMISED",
    "STANDARD",
    "Attack",
    "Ball",
    "Curve",
    "Distances",
    "Entropy",
    "Evidence",
    "Gradients",
    "InputPath",
    "Made",
    "Masking",
    "Normalized",
    "PGDTrace",
    "Planted",
    "Prepared",
    "QueryTrace",
    "Robustness",
    "Spectrum",
    "Stability",
    "Surface",
    "Trajectory",
    "Transfer",
    "WeightSurface",
    "apgd",
    "apgd_targeted",
    "auto_attack",
    "claims",
    "compare",
    "curve",
    "entropy",
    "exchange",
    "fgsm",
    "frozen",
    "gradients",
    "hopskipjump",
    "input_line",
    "input_path",
    "input_plane",
    "interpolate",
    "load",
    "losses",
    "masking",
    "minimum_norm",
    "nes",
    "pgd",
    "pgd_targeted",
    "planted",
    "predict",
    "prepare",
    "rays",
    "robustness",
    "save",
    "spectrum",
    "square",
    "stability",
    "target_classes",
    "trajectory",
    "transfer",
    "weight_line",
    "weight_plane",
]

display.attach(store.KINDS)
