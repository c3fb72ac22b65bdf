"""From evidence to a verdict, by three rules."""

from collections.abc import Sequence

from .evidence import LARGE, MISLED, NOTHING, PINNED, RANDOM, SATURATED, SHATTERED, STATE, WRONG, Evidence
from .record import Verdict

CAUSES = {
    NOTHING,
    WRONG,
    PINNED,
    SATURATED,
    RANDOM,
    STATE,
}  # any of them lets other attacks gain, and directions fail to lead


def judge(gap: tuple[float, float, float], evidence: Sequence[Evidence]) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and the layers of the defence that do it, the one that explains most first.

    "masked": PGD on the cross-entropy leaves samples that something else breaks, more than `LARGE` of all (lower end
    of the 95% interval), and a strong row says that gradients are why. "suspect": the same gap without a strong row,
    or any row fired that counts by itself. "usable": neither. Layers are those of the rows that decided, in the order
    of the table, which is the order in which they explain. A cause that counts and is seen in as many images as the gap
    holds explains it, strong or not.

    Nothing is corrected for the number of rows: a row fires only where its whole interval is above its threshold, and
    how often an honest model is called something else is counted on models that are known (tests/bench/zoo.py). The
    gap is a share of all samples, so that a model which is right on hardly any can be suspect, and not masked.
    """
    fired = [row for row in evidence if row.fired]
    is_wide = gap[1] > LARGE
    if is_wide and any(row.is_strong for row in fired):
        verdict: Verdict = "masked"
    elif is_wide or any(row.counts for row in fired):
        verdict = "suspect"
    else:
        return "usable", ()
    # what only makes suspect is a consequence where something strong explains, unless it is the cause
    reasons = [
        row for row in fired
        if row.layer and (row.counts if verdict == "suspect" else row.is_strong or _explains(row, gap[0]))
    ]  # fmt: skip
    layers = list(dict.fromkeys(row.layer for row in reasons))
    if MISLED in layers and any(row.layer == SATURATED for row in fired):  # the one says why the other
        layers = list(dict.fromkeys(SATURATED if layer == MISLED else layer for layer in layers))
    if CAUSES & set(layers):
        layers = [layer for layer in layers if layer != SHATTERED]
    return verdict, tuple(layers)


def _explains(row: Evidence, gap: float) -> bool:
    return row.counts and row.layer in CAUSES and row.value >= gap
