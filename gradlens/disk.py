"""Files that are there whole or not at all, and weights from files of others."""

import os
import pickle
import tempfile
import warnings
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor


def write(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all: into a temporary one beside it, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, from a safetensors file or from a foreign .pt file of nothing but tensors.

    A .pt file may hold them under "state_dict" or "model". Raises ValueError, naming the file, for anything else: a
    pickle that would execute code is refused, not read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights {str(path)!r} is not a file, expected .safetensors or .pt")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols: what matters is whether it loads
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"weights {str(path)!r} are refused: no safetensors, nor a file that holds tensors alone; a pickle can "
            f"execute anything, convert it where you trust it ({reason})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"weights {str(path)!r} hold no dictionary of tensors by name")
    return content
