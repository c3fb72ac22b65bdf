"""Files that are there whole or not at all, and weights from files of others."""

import glob
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from .provenance import digest_named

SEAL = "weights_sha256"  # where a file of weights carries its hash
FORMAT = "gradlens weights 1"
NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")  # where training scripts put a state dict
UNFINISHED = ".unfinished"  # the end of the name of a file that is being written


def write(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all: into a temporary one beside it, then renamed over it.

    Raises OSError, naming the file, where it cannot be written, as on a full disk; what stood there before stays.
    """
    with saying(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    return path


@contextmanager
def saying(path: Path) -> Iterator[None]:
    """Errors of the disk name the file that they kept from being written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{reason}; not written, and what stood there before stays", str(path)) from error


def tidy(folder: Path, name: str = "*") -> None:
    """Remove what a killed `write` of `name`, or of any file, left in a folder; for those who alone write there."""
    pattern = name if name == "*" else glob.escape(name)
    for left in folder.glob(f".{pattern}.*{UNFINISHED}"):
        left.unlink(missing_ok=True)


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: the same bytes for the same content. safetensors itself shuffles the metadata."""
    content = safetensors.torch.save(dict(tensors), dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(metadata.items()))
    said = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    said += b" " * (-len(said) % 8)
    return len(said).to_bytes(8, "little") + said + content[start:]


def seal_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of weights that carries a hash of all of them, which `load_weights` compares."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return packed(plain, {"format": FORMAT, SEAL: digest_named(plain)})


def open_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError where it carries a hash that they do not have."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    said = (metadata.get("format"), metadata.get(SEAL))
    # one damage cannot hit both of these; files of others have neither
    if (said[0] == FORMAT or said[1] is not None) and said != (FORMAT, digest_named(tensors)):
        raise ValueError("its content does not match the hash written with it")
    return tensors


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, from a safetensors file or from a foreign .pt file of nothing but tensors.

    A .pt file may hold them under a name such as "state_dict" (`NESTED`). Raises ValueError, naming the file, for
    anything else: a pickle that would execute code is refused, not read; so is a file of ours that is not as it was
    written, and a .pt whose content does not match the checksums that torch.save writes with it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights {str(path)!r} is not a file, expected .safetensors or .pt")
    try:
        if path.suffix == ".safetensors":
            return open_weights(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols: what matters is whether it loads
            _check_sums(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch's readers raise almost anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"weights {str(path)!r} are refused: no safetensors, nor a file that holds tensors alone; a pickle can "
            f"execute anything, convert it where you trust it ({reason})"
        ) from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"weights {str(path)!r} hold no dictionary of tensors by name")
    return content


def _check_sums(path: Path) -> None:
    """torch.save writes a zip archive, whose checksums torch.load does not compare. Older files have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} in it does not match its checksum")
