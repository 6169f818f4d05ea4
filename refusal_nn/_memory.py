"""How much memory there is: what does not fit into all of it cannot run, however busy the machine is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def total_memory(device: torch.device | str = "cpu") -> int | None:
    """Bytes of memory of a device, swap included; None where the system does not say.

    Parameters
    ----------
    device : torch.device or str
    """
    kind = str(device).partition(":")[0]
    if kind == "cuda":
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(device).total_memory)
    installed = installed_memory() if kind == "cpu" else None
    return None if installed is None else installed + _swap()


def installed_memory() -> int | None:
    """Bytes of memory of this machine, swap left out; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def gigabytes(n: int) -> str:
    """A number of bytes as it stands in a message."""
    return f"{n / 1e9:,.1f} GB" if n < 1e15 else "more than a million GB"


def _swap() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    found = [line.split()[1] for line in lines if line.startswith("SwapTotal:")]
    return int(found[0]) * 1024 if found else 0
