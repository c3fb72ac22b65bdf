"""Robust accuracy: the worst case per sample over many attacks, curves over budgets, transfer between models."""

from .attack import Attack
from .curves import Curve, curve
from .evaluate import auto_attack, robustness
from .exchange import exchange
from .record import Robustness
from .suites import FULL, QUICK, RANDOMISED, STANDARD
from .transfer import Transfer, transfer

__all__ = [
    "FULL",
    "QUICK",
    "RANDOMISED",
    "STANDARD",
    "Attack",
    "Curve",
    "Robustness",
    "Transfer",
    "auto_attack",
    "curve",
    "exchange",
    "robustness",
    "transfer",
]
