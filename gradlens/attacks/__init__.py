"""One attack a file, each a plain function: (model, x, y, ball, *, ...) -> a record of what it met."""

from .apgd import apgd
from .distances import Distances
from .fgsm import fgsm
from .fmn import minimum_norm
from .pgd import pgd
from .queries import QueryTrace, hopskipjump, nes, rays, square
from .targeted import apgd_targeted, pgd_targeted, target_classes
from .trace import PGDTrace

__all__ = [
    "Distances",
    "PGDTrace",
    "QueryTrace",
    "apgd",
    "apgd_targeted",
    "fgsm",
    "hopskipjump",
    "minimum_norm",
    "nes",
    "pgd",
    "pgd_targeted",
    "rays",
    "square",
    "target_classes",
]
