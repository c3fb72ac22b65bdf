"""Where chance enters a run: for each epoch and purpose a generator of its own, seeded by the run's seed.

So arms that draw more actions still see the same batches, and a run goes on after any epoch without a stored state.
"""

import hashlib
from typing import NamedTuple

import torch


class Generators(NamedTuple):
    """The sources of one epoch. All processes hold the same and draw for the whole batch."""

    order: torch.Generator
    augment: torch.Generator
    actions: torch.Generator
    attacks: torch.Generator

    @classmethod
    def of(cls, seed: int, epoch: int) -> "Generators":
        """The generators of an epoch, counted from 0."""
        return cls(*(torch.Generator().manual_seed(_stream(seed, purpose, epoch)) for purpose in cls._fields))


def seed_layers(seed: int, epoch: int, rank: int) -> None:
    """Seed torch's global generators, which random layers such as dropout use: other masks in each process."""
    torch.manual_seed(_stream(seed, f"layers {rank}", epoch))


def _stream(seed: int, purpose: str, epoch: int) -> int:
    """32 bits, all that torch's generator on the CPU takes, spread so that no two streams are near each other."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {epoch}".encode()).digest()[:4])
