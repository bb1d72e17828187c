"""Open files for reading parts of them, in any number of processes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class OpenFiles:
    """Descriptors by name; the least recently used are closed first. Forked and spawned copies open their own, since
    each process must close only what it opened.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[Hashable, int] = OrderedDict()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict(), "_pid": -1}

    def get(self, name: Hashable, opened: Callable[[], int | None], limit: int) -> int | None:
        """The descriptor of `name`, opened by `opened` (None: no such file); at most `limit` stay open."""
        if self._pid != os.getpid():
            self._files, self._pid = OrderedDict(), os.getpid()
        if name not in self._files:
            if (descriptor := opened()) is None:
                return None
            if len(self._files) >= limit:
                os.close(self._files.popitem(last=False)[1])
            self._files[name] = descriptor
        self._files.move_to_end(name)
        return self._files[name]

    def close(self) -> None:
        """Close the files of this process."""
        if self._pid == os.getpid():
            for descriptor in self._files.values():
                os.close(descriptor)
        self._files.clear()

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()
