"""Pictures of results: (result, ax) -> ax. The only room that imports matplotlib, seaborn and plotly.

What ends in s takes a dict of results, one a model, and as many axes: small multiples on shared scales.
"""

from .attacks import asymmetry, attacks, curves, transfer
from .claims import FILLS, claims, contrasts
from .evidence import evidence, gaps
from .explore import closeup, explore
from .look import COLOURS, LABELS, OTHERS, colour, style
from .paths import history, line, local_cosine, path, trace, traces
from .pictures import inline, picture
from .planes import class_legend, decision_maps, decisions, surface, surfaces
from .record import publish
from .relief import interactive, surface3d
from .samples import distributions, entropy, reliability
from .scale import limits
from .spectra import spectrum
from .weights import weight_line, weight_surface

__all__ = [
    "COLOURS",
    "FILLS",
    "LABELS",
    "OTHERS",
    "asymmetry",
    "attacks",
    "claims",
    "class_legend",
    "closeup",
    "colour",
    "contrasts",
    "curves",
    "decision_maps",
    "decisions",
    "distributions",
    "entropy",
    "evidence",
    "explore",
    "gaps",
    "history",
    "inline",
    "interactive",
    "limits",
    "line",
    "local_cosine",
    "path",
    "picture",
    "publish",
    "reliability",
    "spectrum",
    "style",
    "surface",
    "surface3d",
    "surfaces",
    "trace",
    "traces",
    "transfer",
    "weight_line",
    "weight_surface",
]
