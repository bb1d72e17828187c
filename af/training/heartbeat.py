"""Heartbeats: every rank records its progress, and rank 0 names the ranks that all others wait for."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from af.files import read_json, write_json
from af.values import require_number

#: The phases of a rank between two optimiser steps, in order (validation comes after the preceding step is counted).
#: The others wait for the rank furthest behind.
PHASES = ("data", "validation", "forward", "backward")


class Heartbeat(Callback):
    """Writes `heartbeat/rank<r>.json` in the run folder at every change of phase, at most every `every_s` seconds.

    When no rank has moved for `hung_after_s` seconds (None: no check), rank 0 names the ranks furthest behind, on
    stderr and in `heartbeat/hung.json`: they hang, the others wait for them.
    """

    def __init__(self, every_s: float = 1.0, hung_after_s: float | None = 600.0) -> None:
        require_number("every_s", every_s, least=0)
        require_number("hung_after_s", hung_after_s, above=0, optional=True)
        self.every_s, self.hung_after_s = every_s, hung_after_s
        self._now: dict[str, Any] = {}
        self._written = 0.0
        self._pending = threading.Event()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start writing, and on rank 0 checking."""
        self._folder = Path(trainer.default_root_dir) / "heartbeat"
        self._stop.clear()
        self._beat(trainer, "data")
        work = [self._write_when_due]
        if trainer.global_rank == 0 and self.hung_after_s is not None:
            (self._folder / "hung.json").unlink(missing_ok=True)
            for old in self._folder.glob("rank*.json"):  # from a start with more ranks
                if int(old.stem.removeprefix("rank")) >= trainer.world_size:
                    old.unlink(missing_ok=True)
            work.append(self._look)
        self._threads = [threading.Thread(target=target, daemon=True) for target in work]
        for thread in self._threads:
            thread.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Data has arrived."""
        self._beat(trainer, "forward")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """From now on ranks wait for each other."""
        self._beat(trainer, "backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Waiting for the next data."""
        self._beat(trainer, "data")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation, which can take long, is a separate phase."""
        self._beat(trainer, "validation")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Each batch is a sign of life."""
        self._beat(trainer, "validation")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop both threads, however the run ends."""
        self._stop.set()
        self._pending.set()
        for thread in self._threads:
            thread.join(5)
        self._threads = []

    def _beat(self, trainer: Trainer, phase: str) -> None:
        self._now = {"rank": trainer.global_rank, "step": trainer.global_step, "phase": phase, "since": time.time()}
        self._pending.set()

    def _write_when_due(self) -> None:
        """Write the file from a thread, so a slow file system does not slow down the training."""
        while not self._stop.is_set():
            self._pending.wait()
            self._pending.clear()
            self._write()
            self._stop.wait(self.every_s)
        self._write()

    def _write(self) -> None:
        now = self._now
        try:
            write_json(self._folder / f"rank{now['rank']}.json", now)
        except OSError as error:  # a full disk ends a run at the checkpoint, not here
            print(f"heartbeat not written: {error}", file=sys.stderr)

    def _look(self) -> None:
        assert self.hung_after_s is not None
        told: tuple[int, ...] = ()
        while not self._stop.wait(min(self.hung_after_s / 4, 30.0)):
            behind = hung(self._folder, self.hung_after_s, time.time())
            names = tuple(beat["rank"] for beat in behind)
            if names and names != told:
                step, phase, since = (behind[0][key] for key in ("step", "phase", "since"))
                which = f"furthest behind: rank {', '.join(map(str, names))}, at step {step}, phase {phase}"
                print(f"no rank has moved for {self.hung_after_s:g} s; {which}", file=sys.stderr, flush=True)
                write_json(self._folder / "hung.json", {"ranks": list(names), "step": step, "since": since})
            told = names


def hung(folder: Path, after_s: float, now: float) -> list[dict[str, Any]]:
    """What the ranks furthest behind have written, if none has moved for `after_s` seconds, else nothing."""
    beats = sorted(map(read_json, folder.glob("rank*.json")), key=lambda beat: beat["rank"])
    if not beats or now - max(beat["since"] for beat in beats) < after_s:
        return []

    def place(beat: dict[str, Any]) -> tuple[int, int]:
        return beat["step"], PHASES.index(beat["phase"])

    return [beat for beat in beats if place(beat) == min(map(place, beats))]
