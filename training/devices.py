"""Where notebooks and scripts measure: on the graphics card where there is one."""

import torch


def find(name: str) -> torch.device:
    """The device of this name: cpu, cuda (the current one, or cuda:1 and so on), or auto, cuda where there is one.

    Raises ValueError for another name, and for cuda where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (":" in name and not number.isdecimal())):
        raise ValueError(f"device is {name!r}, expected auto, cpu, cuda or one of several such as cuda:1")
    there = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= there:
        raise ValueError(f"device is {name!r}, expected auto or cpu: torch sees {there} CUDA device(s) here")
    return torch.device(name)
