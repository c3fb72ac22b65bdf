"""A grid that is measured only where interpolation cannot be trusted."""

from collections.abc import Callable, Sequence

import numpy as np

Cell = tuple[int, int]
Block = tuple[int, int, int, int]  # first and last row, first and last column; corners are measured
Ask = Callable[[Sequence[Cell]], np.ndarray]  # cells -> (cells, metrics)

START = 7  # rows and columns of the coarse grid
DENSE = 2  # blocks of no more cells along a side are measured whole: their checks would be most of their cells
MANY = 1000  # measured cells from which on interpolation looks at neighbours only; a full solve is cubic in them


def fill(ask: Ask, shape: tuple[int, int], tolerance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (metrics, R, C), the mask (R, C) of measured cells, and a bound (metrics,) for the others.

    A coarse grid is measured first. In each of its blocks two cells, the centre and one off it, are predicted from
    all that is measured (cubic radial basis functions, which are exact for quadratic surfaces) and then measured. A
    block whose predictions miss by more than half of `tolerance` times the metric's range, or that touches a cell
    without a finite value, is split in four, and so on down to single cells. What is left is interpolated. The bound
    is twice the largest miss in the blocks that were kept: cells there have measured ones closer by than the checks
    had, but a bump that lies between all measured cells would not be seen.
    """
    known: dict[Cell, np.ndarray] = {}

    def measure(cells: Sequence[Cell]) -> None:
        new = sorted(set(cells) - known.keys())
        if new:
            known.update(zip(new, ask(new), strict=True))

    rows, columns = (_nodes(size) for size in shape)
    measure([(row, column) for row in rows for column in columns])
    blocks = [(*r, *c) for r in _pairs(rows) for c in _pairs(columns)]
    bound = np.zeros(len(known[0, 0]))
    while blocks:
        small = [block for block in blocks if max(_sides(block)) <= DENSE]
        measure([cell for block in small for cell in _cells(block)])
        blocks = [block for block in blocks if max(_sides(block)) > DENSE]
        checks = sorted({cell for block in blocks for cell in _checks(block)} - known.keys())
        missed = dict(zip(checks, _interpolate(known, checks, shape), strict=True))
        measure(checks)
        allowed = _allowed(known, tolerance)
        split: list[Block] = []
        for block in blocks:
            gap = np.max([np.abs(known[c] - missed.get(c, known[c])) for c in _checks(block)], axis=0)
            edge = np.array([known[c] for c in _corners(block)])
            if np.isfinite(edge).all() and (gap <= allowed).all():  # nan is never within
                bound = np.maximum(bound, 2 * gap)
            else:
                split += _quarters(block)
        measure([cell for block in split for cell in _corners(block)])
        blocks = split

    rest = [(r, c) for r in range(shape[0]) for c in range(shape[1]) if (r, c) not in known]
    values = np.full((*shape, len(bound)), np.nan)
    measured = np.zeros(shape, dtype=bool)
    for cell, value in known.items():
        values[cell], measured[cell] = value, True
    for cell, value in zip(rest, _interpolate(known, rest, shape), strict=True):
        values[cell] = value
    return np.moveaxis(values, -1, 0), measured, bound


def _nodes(size: int) -> list[int]:
    return sorted({round(node) for node in np.linspace(0, size - 1, min(START, size))})


def _pairs(nodes: list[int]) -> list[tuple[int, int]]:
    return list(zip(nodes[:-1], nodes[1:], strict=True)) or [(nodes[0], nodes[0])]


def _sides(block: Block) -> tuple[int, int]:
    return block[1] - block[0], block[3] - block[2]


def _cells(block: Block) -> list[Cell]:
    return [(r, c) for r in range(block[0], block[1] + 1) for c in range(block[2], block[3] + 1)]


def _corners(block: Block) -> list[Cell]:
    return [(r, c) for r in block[:2] for c in block[2:]]


def _checks(block: Block) -> list[Cell]:
    """The centre, farthest from what is measured, and a cell off the lattice, which an even ripple cannot fool."""
    first, last, left, right = block
    return [((first + last) // 2, (left + right) // 2), (first + (last - first) // 3, right - (right - left) // 3)]


def _quarters(block: Block) -> list[Block]:
    first, last, left, right = block
    rows = _pairs(sorted({first, (first + last) // 2, last}))
    columns = _pairs(sorted({left, (left + right) // 2, right}))
    return [(*r, *c) for r in rows for c in columns]


def _allowed(known: dict[Cell, np.ndarray], tolerance: float) -> np.ndarray:
    """Half the tolerance, which leaves room for what the checks did not see."""
    values = np.array(list(known.values()))
    values = values[np.isfinite(values).all(1)]
    if not len(values):
        return np.zeros(values.shape[1])
    # a flat metric is flat up to the rounding of the linear solve
    return np.maximum(tolerance / 2 * np.ptp(values, axis=0), 1e-9 * np.abs(values).max(0))


def _interpolate(known: dict[Cell, np.ndarray], cells: Sequence[Cell], shape: tuple[int, int]) -> np.ndarray:
    """Predictions (cells, metrics); nan where too few finite cells are known."""
    from scipy.interpolate import RBFInterpolator

    finite = [cell for cell, value in known.items() if np.isfinite(value).all()]
    empty = np.full((len(cells), len(next(iter(known.values())))), np.nan)
    if not cells or not finite:
        return empty
    axes = [axis for axis in (0, 1) if shape[axis] > 1]
    size = np.array([shape[axis] - 1 for axis in axes])
    try:
        surface = RBFInterpolator(
            np.array(finite)[:, axes] / size,
            np.array([known[cell] for cell in finite]),
            kernel="cubic",
            degree=2,
            neighbors=None if len(finite) <= MANY else 64,
        )
        return surface(np.array(cells)[:, axes] / size)
    except (ValueError, np.linalg.LinAlgError):  # fewer cells than a quadratic has coefficients, or all on one line
        return empty
