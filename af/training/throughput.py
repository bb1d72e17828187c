"""Throughput of a training: speed, time per phase, and utilisation of the hardware."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, Profiler

from af.devices import synchronize
from af.errors import UserError
from af.files import append_line
from af.training.flops import FlopCounter, matmul_gflops
from af.values import require_number

#: Phases of a batch; `logging` is the rest: loggers, callbacks, checkpoints, copies to the device.
PHASES: Final = ("data", "forward", "backward", "optimizer", "logging")


class DataClock(Profiler):
    """Measures the seconds that Lightning's loop waits for batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since = 0.0

    def start(self, action_name: str) -> None:
        """Called by Lightning when an action starts."""
        if action_name.endswith("train_dataloader_next"):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Called by Lightning when an action ends."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._since


class Throughput(Callback):
    """Logs every n batches, in TensorBoard and `throughput.jsonl`: frames per second (all ranks), time per batch by
    `PHASES`, the share of waiting for data, and GFLOP/s of matrix products.

    `peak_tflops` is the device's peak at the training's precision (H100, bf16, dense: 989), or "measure" for that of a
    square matrix product; it adds the utilisation. Products are counted in the first batch on one rank, as executed
    (including recomputed blocks). On an accelerator one batch in ten is timed by phase, synchronously. With a
    discriminator, `optimizer` includes its passes.
    """

    def __init__(self, every_n_steps: int = 50, peak_tflops: float | str | None = None) -> None:
        if isinstance(peak_tflops, str) and peak_tflops != "measure":
            raise UserError(f"throughput.peak_tflops: {peak_tflops!r}; allowed: a number, measure, or null")
        if not isinstance(peak_tflops, str | None):
            require_number("throughput.peak_tflops", peak_tflops, above=0)
        require_number("every_n_steps", every_n_steps, least=1, whole=True)
        self.every_n_steps, self.peak_tflops = every_n_steps, peak_tflops
        self.data = DataClock()
        self.waits = True  # False with another profiler in place of `data`
        self.flops: int | None = None  # per batch on this rank
        self._last = 0.0
        self._counter: FlopCounter | None = None
        self._eager: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Use the clock as Lightning's profiler, unless there is one."""
        if isinstance(trainer.profiler, PassThroughProfiler):  # type: ignore[attr-defined]
            trainer.profiler = self.data  # type: ignore[attr-defined]
        self.waits = trainer.profiler is self.data  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        if self.peak_tflops == "measure":
            dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
            self.peak_tflops = matmul_gflops(dtype, device=pl_module.device) / 1e3
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exclude validation from training time."""
        if not trainer.sanity_checking:
            self._restart()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch has arrived."""
        # collectives must not run inside the counter, so only runs of one rank are counted
        if self.flops is None and self._counter is None and trainer.world_size == 1:
            if any(m._compiled_call_impl is not None for m in pl_module.modules()):
                self._eager = torch.compiler.set_stance("force_eager")  # products inside compiled code are not counted
                self._eager.__enter__()
            self._counter = FlopCounter()
            self._counter.__enter__()
        self._device = pl_module.device
        self._timed = self._device.type == "cpu" or self._batches % 10 == 0
        self._mark(None)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """The forward pass has ended."""
        self._mark("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The gradients of all ranks are ready."""
        self._mark("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log when due."""
        self._mark("optimizer")
        self._timed_batches += self._timed
        counted = self._counter is not None
        if self._counter is not None:
            self.flops = self._counter.flops
            self._stop_counting()
        self._frames += batch_frames(batch)
        self._batches += 1
        if counted:  # exclude this batch, since counting is slow
            self._restart()
        elif self._batches == self.every_n_steps:
            self._log(trainer, pl_module)
            self._restart()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the counter."""
        self._stop_counting()

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self.data.seconds = 0.0
        self._frames = self._batches = self._timed_batches = 0
        self._spent = dict.fromkeys(PHASES[1:4], 0.0)
        self._timed = False

    def _mark(self, phase: str | None) -> None:
        """Attribute the time since the last mark to `phase`."""
        if not self._timed:
            return
        synchronize(self._device)
        now = time.perf_counter()
        if phase is not None:
            self._spent[phase] += now - self._last
        self._last = now

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            if self._eager is not None:
                self._eager.__exit__(None, None, None)
            self._counter = self._eager = None

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        elapsed = time.perf_counter() - self._since
        batch_s = elapsed / self._batches
        times = {name: seconds / max(1, self._timed_batches) for name, seconds in self._spent.items()}
        if self.waits:
            times["data"] = self.data.seconds / self._batches
        times["logging"] = max(0.0, batch_s - sum(times.values()))
        values = {
            "throughput/frames_per_second": self._frames * trainer.world_size / elapsed,
            "throughput/batches_per_second": 1 / batch_s,
            **({"throughput/data_wait_share": times["data"] / batch_s} if self.waits else {}),
            **{f"throughput/ms/{name}": 1000 * times[name] for name in PHASES if name in times},
        }
        if self.flops:
            values["throughput/gflops_per_second"] = self.flops / batch_s / 1e9  # of a rank
            if isinstance(self.peak_tflops, int | float):
                values["throughput/utilization"] = self.flops / batch_s / 1e12 / self.peak_tflops
        module.log_dict(values)
        if trainer.global_rank == 0:
            line = {"step": trainer.global_step, "ranks": trainer.world_size, "flops_per_batch": self.flops, **values}
            append_line(Path(trainer.default_root_dir) / "throughput.jsonl", json.dumps(line))


def batch_frames(batch: Any) -> int:
    """Number of video frames in a batch: B for pairs of images, B·T for windows."""
    first = next(iter(vars(batch).values()))
    return first.shape[0] if first.ndim != 3 else first.shape[0] * first.shape[1]
