"""Is the robustness real, or are the gradients masked? A verdict with its evidence."""

from .evaluate import masking
from .evidence import Evidence
from .planted import Planted, planted
from .record import Masking

__all__ = ["Evidence", "Masking", "Planted", "masking", "planted"]
