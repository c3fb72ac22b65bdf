"""Random numbers that belong to a sample: neither the batch it is measured in nor its place there changes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .types import Images


@dataclass(frozen=True)
class Draws:
    """One random stream a sample, seeded by the sample's own content and one number for the whole measurement.

    Streams are drawn on the CPU, so that a measurement sees the same noise on every device.
    """

    streams: tuple[torch.Generator, ...]

    @classmethod
    def of(cls, seed: int, keys: list[bytes]) -> Draws:
        """Streams for samples with these keys (see `keys`)."""
        mixed = (hashlib.blake2b(key, digest_size=7, salt=seed.to_bytes(8, "little")).digest() for key in keys)
        return cls(tuple(torch.Generator().manual_seed(int.from_bytes(number, "little")) for number in mixed))


Source = torch.Generator | Draws | None


def keys(x: Images) -> list[bytes]:
    """A hash of each sample's content."""
    content = x.detach().cpu().contiguous()
    return [hashlib.blake2b(sample.numpy().data, digest_size=16).digest() for sample in content]


def seed(generator: torch.Generator | None) -> int:
    """One number from the caller's generator, from torch's global one if there is none."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def mixed(number: str, name: str) -> int:
    """A seed for one part of a measurement, whatever else runs."""
    return int.from_bytes(hashlib.blake2b(f"{number} {name}".encode(), digest_size=7).digest(), "little")


def gaussian(like: Tensor, source: Source = None) -> Tensor:
    """Standard normal numbers of the shape, type and device of `like`."""
    return _draw(torch.randn, like, source)


def uniform(like: Tensor, source: Source = None) -> Tensor:
    """Uniform numbers in [0, 1) of the shape, type and device of `like`."""
    return _draw(torch.rand, like, source)


def _draw(kind: Callable[..., Tensor], like: Tensor, source: Source) -> Tensor:
    if isinstance(source, Draws):
        rows = [kind(like.shape[1:], generator=stream, dtype=like.dtype) for stream in source.streams]
        return torch.stack(rows).to(like.device)
    device = source.device if source is not None else like.device
    return kind(like.shape, generator=source, device=device, dtype=like.dtype).to(like.device)
