"""Claims about ways of training: what is read from the models, the rules, the verdicts."""

from .controls import Scaled, as_confident_as
from .measure import Readings, measure
from .rules import Claim, Line, paired
from .table import Claims, hardened, judge

__all__ = ["Claim", "Claims", "Line", "Readings", "Scaled", "as_confident_as", "hardened", "judge", "measure", "paired"]
