"""A grid that is measured only where interpolation cannot be trusted."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

Cell = tuple[int, int]
Block = tuple[int, int, int, int]  # first and last row, first and last column; corners are measured
Kernel = Literal["cubic", "thin_plate_spline"]
Ask = Callable[[Sequence[Cell]], np.ndarray]  # cells -> (cells, metrics)

START = 7  # rows and columns of the coarse grid
DENSE = 2  # blocks of no more cells along a side are not checked inside: the checks would be most of their cells
MOST = 0.7  # share of measured cells from which on the rest is measured too: such a surface is not smooth
MARGIN = 2  # how much smaller than the tolerance a miss must be, since trials do not see the worst cell
MANY = 1000  # measured cells from which on interpolation looks at neighbours only; a full solve is cubic in them


def fill(ask: Ask, shape: tuple[int, int], tolerance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (metrics, R, C), the mask (R, C) of measured cells, and a bound (metrics,) for the others.

    A coarse grid is measured first. The centre of each of its blocks is predicted from all that is measured (cubic
    radial basis functions with quadratic terms) and then measured. A block whose prediction misses by more than half
    of `tolerance` times the metric's range, or that touches a cell without a finite value, is split in four, and so
    on down to single cells. Each block that passed is audited at one more cell against what would be handed over:
    where another kind of interpolation disagrees most. The rest is interpolated. The bound is twice the largest miss
    in blocks that passed: a measured estimate that leaves room for what the trials did not see, not a theorem. A bump
    that lies between all measured cells is not seen.
    """
    rows, columns = (_nodes(size) for size in shape)
    lattice = [(row, column) for row in rows for column in columns]
    known: dict[Cell, np.ndarray] = dict(zip(lattice, ask(lattice), strict=True))
    misses: dict[Cell, np.ndarray] = {}
    bound = np.zeros(len(known[0, 0]))

    def attempt(cells: Iterable[Cell]) -> None:
        new = sorted(set(cells) - known.keys())
        if new:
            guesses = _interpolate(known, new, shape)
            known.update(zip(new, ask(new), strict=True))
            misses.update({cell: np.abs(known[cell] - guess) for cell, guess in zip(new, guesses, strict=True)})

    def passes(block: Block, trials: Iterable[Cell]) -> bool:
        nonlocal bound
        found = [misses[cell] for cell in trials if cell in misses]
        is_finite = all(np.isfinite(known[cell]).all() for cell in _corners(block))
        if not (found and is_finite and (np.max(found, axis=0) <= _allowed(known, tolerance)).all()):
            return False  # nan is never within
        bound = np.maximum(bound, MARGIN * np.max(found, axis=0))
        return True

    blocks = [(*r, *c) for r in _pairs(rows) for c in _pairs(columns)]
    attempt(cell for block in blocks if max(_sides(block)) <= DENSE for cell in _cells(block))
    blocks = [block for block in blocks if max(_sides(block)) > DENSE]
    unaudited: list[Block] = []
    while blocks or unaudited:
        is_audit = not blocks
        trials = _doubtful(unaudited, known, shape) if is_audit else {block: _centre(block) for block in blocks}
        attempt(trials.values())
        failed = [block for block, cell in trials.items() if not passes(block, [cell])]
        unaudited = [] if is_audit else unaudited + [block for block in blocks if block not in failed]
        children = {child: trials[block] for block in failed for child in _quarters(block)}
        attempt(cell for child in children for cell in _corners(child))
        small = {child: cell for child, cell in children.items() if max(_sides(child)) <= DENSE}
        # a small block is tried at its own new corners; the cell that its parent failed at is no news
        missed = [child for child, old in small.items() if not passes(child, set(_corners(child)) - {old})]
        attempt(cell for child in missed for cell in _cells(child))
        blocks = [child for child in children if child not in small]
    if len(known) > MOST * shape[0] * shape[1]:
        attempt((r, c) for r in range(shape[0]) for c in range(shape[1]))
        bound = np.zeros_like(bound)
    return (*_filled(known, shape), bound)


def _filled(known: dict[Cell, np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rest = [(r, c) for r in range(shape[0]) for c in range(shape[1]) if (r, c) not in known]
    values = np.full((*shape, len(known[0, 0])), np.nan)
    measured = np.zeros(shape, dtype=bool)
    for cell, value in known.items():
        values[cell], measured[cell] = value, True
    for cell, value in zip(rest, _interpolate(known, rest, shape), strict=True):
        values[cell] = value
    return np.moveaxis(values, -1, 0), measured


def _nodes(size: int) -> list[int]:
    return sorted({round(node) for node in np.linspace(0, size - 1, min(START, size))})


def _pairs(nodes: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(nodes)) or [(nodes[0], nodes[0])]


def _sides(block: Block) -> tuple[int, int]:
    return block[1] - block[0], block[3] - block[2]


def _cells(block: Block) -> list[Cell]:
    return [(r, c) for r in range(block[0], block[1] + 1) for c in range(block[2], block[3] + 1)]


def _corners(block: Block) -> list[Cell]:
    return [(r, c) for r in block[:2] for c in block[2:]]


def _centre(block: Block) -> Cell:
    return (block[0] + block[1]) // 2, (block[2] + block[3]) // 2


def _doubtful(blocks: Sequence[Block], known: dict[Cell, np.ndarray], shape: tuple[int, int]) -> dict[Block, Cell]:
    """In each block the cell where two kinds of interpolation disagree most; a measured one where there is no other."""
    options = {block: [cell for cell in _cells(block) if cell not in known] or [_centre(block)] for block in blocks}
    cells = sorted({cell for choice in options.values() for cell in choice})
    gaps = np.abs(_interpolate(known, cells, shape) - _interpolate(known, cells, shape, kernel="thin_plate_spline"))
    doubt = dict(zip(cells, (gaps / _allowed(known, 1.0)).max(1), strict=True))
    return {block: max(choice, key=doubt.__getitem__) for block, choice in options.items()}


def _quarters(block: Block) -> list[Block]:
    first, last, left, right = block
    rows = _pairs(sorted({first, (first + last) // 2, last}))
    columns = _pairs(sorted({left, (left + right) // 2, right}))
    return [(*r, *c) for r in rows for c in columns]


def _allowed(known: dict[Cell, np.ndarray], tolerance: float) -> np.ndarray:
    """The largest miss of a block that is kept, for each metric."""
    values = np.array(list(known.values()))
    values = values[np.isfinite(values).all(1)]
    if not len(values):
        return np.zeros(values.shape[1])
    # a flat metric is flat up to the rounding of the linear solve
    return np.maximum(tolerance / MARGIN * np.ptp(values, axis=0), 1e-9 * np.abs(values).max(0))


def _interpolate(
    known: dict[Cell, np.ndarray], cells: Sequence[Cell], shape: tuple[int, int], kernel: Kernel = "cubic"
) -> np.ndarray:
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
            kernel=kernel,
            degree=2,
            neighbors=None if len(finite) <= MANY else 64,
        )
        return surface(np.array(cells)[:, axes] / size)
    except (ValueError, np.linalg.LinAlgError):  # fewer cells than a quadratic has coefficients, or all on one line
        return empty
