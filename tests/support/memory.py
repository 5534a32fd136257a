"""How much memory this process holds: provider, gateway and client together."""

import gc
import os
from pathlib import Path

MIB = 1 << 20
FLAT = 30 * MIB
"""A transfer of any size may add this much."""


def resident() -> int:
    """Return the bytes of this process that are in RAM."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
