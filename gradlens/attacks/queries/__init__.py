"""Attacks that see only a model's answers, each one counted: scores (Square, NES) or labels (RayS, HopSkipJump)."""

from .blackbox import BlackBox
from .hopskipjump import hopskipjump
from .nes import nes
from .rays import rays
from .record import QueryTrace
from .square import square

__all__ = ["BlackBox", "QueryTrace", "hopskipjump", "nes", "rays", "square"]
