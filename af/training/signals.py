"""What a signal to stop does to a training on several ranks."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class LeaveAtOnce(Callback):
    """SIGTERM ends a rank of several at once, with exit code 143; its launcher then ends the others.

    Lightning broadcasts from within its handler. A signal that reaches one rank alone then puts the collectives of the
    ranks out of step, and they wait for each other for ever (seen with 2.6.6). Nothing is lost by leaving: the run goes
    on from its last checkpoint. A training in one process keeps Lightning's orderly way.
    """

    def __init__(self) -> None:
        self._before: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handler, which is installed by now."""
        if trainer.world_size > 1:
            self._before = signal.signal(signal.SIGTERM, _leave)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give it back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


def _leave(number: int, frame: FrameType | None) -> None:
    print(f"rank {os.environ.get('RANK', '?')}: signal {number}, leaving", file=sys.stderr, flush=True)
    os._exit(128 + number)
