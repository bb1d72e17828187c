"""`af live` in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Final

import psutil

from af.errors import UserError

_MB: Final = 1 << 20


class Server:
    """A running `af live`: its address and its memory."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address
        self._process = psutil.Process(process.pid)

    def memory(self) -> dict[str, float]:
        """Resident and proportional set size in MB."""
        found = self._process.memory_full_info()
        return {"rss_mb": found.rss / _MB, "pss_mb": getattr(found, "pss", found.rss) / _MB}

    def require_life(self) -> None:
        """Raise UserError if the server has ended."""
        if self.process.poll() is not None:
            raise UserError(f"af live has ended with code {self.process.returncode}")


@contextlib.contextmanager
def serving(words: Sequence[str]) -> Iterator[Server]:
    """`af live` with these options, until the block ends."""
    command = [sys.executable, "-m", "af.cli.main", "live", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("open "):
                    yield Server(process, line.removeprefix("open ").strip())
                    break
            else:
                raise UserError(f"af live did not start (exit code {process.wait()})")
        finally:
            process.terminate()
