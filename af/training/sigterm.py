"""Stopping on signals: every rank finishes and saves the current step, and reports what was saved."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from af.errors import Stopped
from af.values import require_number

#: What ranks agree on after a step: the largest of their requests.
GO_ON, SAVE, STOP = 0, 1, 2
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
#: Launchers forward a signal that a terminal has already sent to all: a second one within this time is the same.
_SAME_S: Final = 1.0


class Stops(Callback):
    """After SIGINT or SIGTERM on any rank, all ranks save after the same step and end with `af.errors.Stopped`.

    If that takes longer than `grace_s` seconds (launchers kill after 30), or after a second signal, this process ends
    immediately. A save is also due `every_minutes` after the last one (None: never).
    """

    def __init__(self, grace_s: float = 20.0, every_minutes: float | None = 10.0) -> None:
        require_number("grace_s", grace_s, above=0)
        require_number("checkpoint_every_minutes", every_minutes, above=0, optional=True)
        self.grace_s, self.every_minutes = grace_s, every_minutes
        self.asked: signal.Signals | None = None
        self.saved_step = 0
        self._saved_at = self._asked_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._timer: threading.Timer | None = None
        self._group: Any = None
        self._wishes: torch.Tensor | None = None
        self._work: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, which communicate with other ranks and can hang."""
        self.saved(trainer.global_step)
        if trainer.received_sigterm:
            self.asked = signal.SIGTERM
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # on the host, so no step waits for a device

    def saved(self, step: int) -> None:
        """Record that the state of `step` is on disk."""
        self.saved_step, self._saved_at = step, time.monotonic()

    def agreed(self) -> int:
        """GO_ON, SAVE or STOP, equal on all ranks; call it once per step. With several ranks it reflects their requests
        at the previous step, so none waits for the others.
        """
        late = self.every_minutes is not None and time.monotonic() - self._saved_at > 60 * self.every_minutes
        wish = STOP if self.asked else SAVE if late else GO_ON
        if self._group is not None:
            wish = self._exchanged(wish)
        if wish == STOP and self._timer is not None:
            self._timer.cancel()  # saving may take as long as it needs
        return wish

    def stop(self, step: int) -> None:
        """End the training after `step`, which has been saved (except in a smoke run)."""
        saved = "which is saved: the same command continues from there"
        kept = saved if step == self.saved_step else "a smoke run (trainer.fast_dev_run): nothing is kept"
        raise Stopped(self.asked or signal.SIGTERM, f"stopped at step {step}, {kept}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the handlers."""
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before, self._group = {}, None

    def _exchanged(self, wish: int) -> int:
        found = GO_ON
        if self._work is not None:
            self._work.wait()
            found = int(self._wishes)  # type: ignore[arg-type]
        self._wishes = torch.tensor(wish if found == GO_ON or wish == STOP else GO_ON)
        self._work = dist.all_reduce(self._wishes, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return found

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self._asked_at = signal.Signals(number), time.monotonic()
            _say(f"{self.asked.name}: stops after this step; a second signal ends the process immediately")
            self._timer = threading.Timer(self.grace_s, self._leave, [f"no step finished within {self.grace_s:g} s"])
            self._timer.daemon = True
            self._timer.start()
        elif time.monotonic() - self._asked_at > _SAME_S:
            self._leave("ended at once")

    def _leave(self, why: str) -> None:
        assert self.asked is not None
        there = f"continues from step {self.saved_step}" if self.saved_step else "starts again, no step was saved"
        _say(f"{why}; the same command {there}")
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # show the cursor, which a progress bar hides
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + self.asked)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore both signals' handlers, however the block ends."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _say(text: str) -> None:
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    print(f"{rank}{text}", file=sys.stderr, flush=True)
