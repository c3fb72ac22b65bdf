"""Curvature: the spectrum of the Hessian of the loss, in the weights or in the input."""

from .measure import spectrum
from .record import Spectrum

__all__ = ["Spectrum", "spectrum"]
