"""Avatar Forcing: conversational head avatars that talk and listen."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from af.forcing.pieces import Rates, Signals
    from af.ingest.crops import FaceCropper, read_portrait
    from af.pipeline.live import live_session
    from af.share.avatar import Avatar
    from af.share.runtime import Runtime

__all__ = ["Avatar", "FaceCropper", "Rates", "Runtime", "Signals", "live_session", "read_portrait"]

# OpenMP threads spin while they wait for each other. On a busy machine the waiting threads take cores from the working
# ones, and everything becomes many times slower; threads that sleep at once take half of the speed of an idle machine,
# since waking them takes longer than most of what they wait for. So they spin for some microseconds (docs/speed.md).
# OpenMP reads these variables when torch is imported, so they are set first, unless the user has set a policy. The first
# is for runtimes that do not know the second.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}

_HOMES = {
    "Avatar": "af.share.avatar",
    "FaceCropper": "af.ingest.crops",
    "Rates": "af.forcing.pieces",
    "Runtime": "af.share.runtime",
    "Signals": "af.forcing.pieces",
    "live_session": "af.pipeline.live",
    "read_portrait": "af.ingest.crops",
}


def __getattr__(name: str) -> Any:
    """Import the names above on first use: `import af` alone loads nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
