"""One attack a file, each a plain function: (model, x, y, ball, *, ...) -> a record of what it met."""

from .pgd import pgd
from .queries import QueryTrace, hopskipjump, nes, rays, square
from .trace import PGDTrace

__all__ = ["PGDTrace", "QueryTrace", "hopskipjump", "nes", "pgd", "rays", "square"]
