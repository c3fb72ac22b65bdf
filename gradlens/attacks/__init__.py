"""One attack a file, each a plain function: (model, x, y, ball, *, ...) -> a record of what it met."""

from .apgd import apgd
from .distances import Distances
from .fgsm import fgsm
from .fmn import minimum_norm
from .pgd import pgd
from .targeted import apgd_targeted, target_classes
from .trace import PGDTrace

__all__ = ["Distances", "PGDTrace", "apgd", "apgd_targeted", "fgsm", "minimum_norm", "pgd", "target_classes"]
