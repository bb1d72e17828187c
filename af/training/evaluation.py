"""Evaluation as a Lightning test on any number of ranks, and as a callback while a denoiser trains."""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from af.console import progress_bar, show
from af.data.index import Index
from af.data.stores import location
from af.devices import choose_device
from af.errors import Stopped, UserError
from af.evaluation.checkpoint import (
    Subject,
    is_autoencoder,
    report_autoencoder,
    report_checkpoint,
    with_tracker,
)
from af.evaluation.linear_probe import LinearProbe
from af.evaluation.measured import Measured, Table
from af.evaluation.settings import CheckpointSettings
from af.files import read_json, write_json
from af.forcing.dropout import SIGNALS, signal_subsets, subset_name
from af.metrics.records import MetricResult, MetricRow
from af.models.artifact import load_as, model_info
from af.models.autoencoder import MotionAutoencoder
from af.pipeline.avatar import Avatar
from af.pipeline.sampling import usual_sampling
from af.training.launch import quiet
from af.training.ranks import find_ranks
from af.training.sigterm import SIGNALS as SIGNALS_TO_STOP
from af.training.sigterm import handlers_kept
from af.training.validation import of_all_ranks
from af.values import require_number

#: File in the results' folder of a training with the requested evaluation and its completion.
REQUEST: Final = "request.json"


class EvaluationModule(LightningModule):
    """Measures this rank's share of a subject's clips for the table; after the test, table and problems are those of
    all ranks. Networks stay outside the module tree, so Lightning neither moves nor saves them.
    """

    def __init__(self, subject: Subject, out: Path) -> None:
        super().__init__()
        self._subject, self._out = (subject,), out
        self.measured: dict[int, Measured] = {}
        self.problems: dict[int, str] = {}
        self.result = MetricResult()

    def test_dataloader(self) -> DataLoader:
        """This rank's groups of clips; each group belongs to one rank. A rank without any gets an empty one, since
        Lightning refuses a loader without batches.
        """
        return DataLoader(self._groups() or [[]], batch_size=None)  # type: ignore[arg-type]

    def _groups(self) -> list[list[int]]:
        return self._subject[0].groups()[self.trainer.global_rank :: self.trainer.world_size]

    def on_test_start(self) -> None:
        """Show progress on rank 0, and stop immediately on a signal."""
        self._table = self._subject[0].table(self.device)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS_TO_STOP:
                signal.signal(number, _stop)
        self._progress = progress_bar()
        if self.trainer.is_global_zero:
            self._progress.start()
        self._task = self._progress.add_task("rolling out", total=sum(map(len, self._groups())))

    def test_step(self, group: Sequence[int], batch_idx: int) -> None:
        """Roll out, decode and measure the clips of a group."""
        found = self._subject[0].measure(group, self._out)
        self.problems |= count(self._table, found)
        self.measured |= {i: m for i, m in found.items() if isinstance(m, Measured)}
        if self.trainer.is_global_zero:
            self._progress.update(self._task, completed=len(self.measured) + len(self.problems))

    def on_test_epoch_end(self) -> None:
        """Compute the rows of all ranks, on every rank."""
        self._progress.stop()
        self.problems = gathered(self.problems)
        self.result = tabled(self._table)


def count(table: Table, found: Mapping[int, Measured | str]) -> dict[int, str]:
    """Add clips to the table by position; returns the errors of those that could not be measured."""
    for i, measured in sorted(found.items()):
        if isinstance(measured, Measured):
            table.add(replace(measured.clip, position=i))
    return {i: problem for i, problem in found.items() if isinstance(problem, str)}


def tabled(table: Table) -> MetricResult:
    """The rows of all ranks' clips; every rank must call it. A family that failed on one rank is left out on all."""
    table.failed = gathered(table.failed)
    return table.result()


def gathered(mine: dict[Any, str]) -> dict[Any, str]:
    """The (small) entries of all ranks. Every rank must call it."""
    return {key: text for entries in of_all_ranks(mine) for key, text in entries.items()}


def evaluate(
    model: str | Path,
    settings: CheckpointSettings,
    out: Path,
    *,
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    request: Mapping[str, Any] | None = None,
) -> int:
    """Evaluate a model folder, run or checkpoint into `out`, on the started ranks (`devices` per machine). Returns the
    exit code, 1 if a part failed. A motion VAE gets the rows of its reconstruction.

    Measurements are kept, so the same call continues after a stop. With `request`, a configuration, a finished
    evaluation of this model with an equal request is not repeated, and one with another request is replaced. Raises
    UserError for settings that do not fit.
    """
    place, several = choose_device(device), devices * num_nodes > 1
    if place.type == "cuda" and several:
        place = torch.device("cuda", find_ranks().environment().local_rank())
    quiet()
    trainer = Trainer(
        accelerator="gpu" if place.type == "cuda" and several else "cpu",  # one rank places its networks itself
        devices=devices,
        num_nodes=num_nodes,
        strategy="ddp" if several else "auto",
        plugins=[find_ranks().environment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.strategy.setup_environment()
    trainer.strategy.barrier()  # rank 0 has written the model that all ranks read
    first, asked = trainer.is_global_zero, None
    if request is not None:
        asked = {"evaluation": dict(request), "model": model_info(model)["sha256"]}
        if trainer.strategy.broadcast(_is_done(out, asked) if first else None):
            return 0
    code = _evaluate(trainer, model, settings, out, place)
    if asked is not None and first and code == 0:
        write_json(out / REQUEST, {**asked, "done": True})
    return code


def _is_done(out: Path, asked: Mapping[str, Any]) -> bool:
    """Whether this evaluation is done. Deletes one with another request or model."""
    file = out / REQUEST
    known = read_json(file) if file.is_file() else {}
    if known == {**asked, "done": True}:
        return True
    if known and {k: known.get(k) for k in asked} != dict(asked):
        print(f"{out} is of another model or configuration: it is replaced")
        shutil.rmtree(out)
    write_json(file, {**asked, "done": False})
    return False


def _evaluate(trainer: Trainer, model: str | Path, settings: CheckpointSettings, out: Path, place: torch.device) -> int:
    first = trainer.is_global_zero
    if is_autoencoder(model):
        return report_autoencoder(model, settings, out, place) if first else 0
    subject = Subject.load(model, settings, place)
    if first and subject.people.known != "held out":
        print(subject.people.text)
    if settings.conditions == "all":
        return _every_subset(trainer, subject, out)
    start = time.monotonic()
    module = _tested(trainer, subject, out)
    if not first:
        return 0
    took_s, numbers = time.monotonic() - start, [i for group in subject.groups() for i in group]
    # results of other ranks are on disk
    rest = [i for i in numbers if i not in module.measured and i not in module.problems]
    found = {**module.measured, **(subject.measure(rest, out) if rest else {})}
    measured = [m for _, m in sorted(found.items()) if isinstance(m, Measured)]
    problems = {subject.index.samples[i].key: problem for i, problem in sorted(module.problems.items())}
    return report_checkpoint(subject, module.result, measured, problems, out, took_s)


def _tested(trainer: Trainer, subject: Subject, out: Path) -> EvaluationModule:
    subject.claim(out)
    module = EvaluationModule(subject, out)
    with handlers_kept():
        trainer.test(module, verbose=False)
    return module


def _stop(number: int, _: Any) -> NoReturn:
    """Handle a signal. Lightning's handlers communicate with other ranks, which can hang."""
    raise Stopped(number, "stopped; measurements are kept, and the same command continues with the rest")


def _every_subset(trainer: Trainer, subject: Subject, out: Path) -> int:
    """The 2³ table: results for every subset of the model's signals."""
    from af.evaluation.comparison import Comparison, Setting, write_comparison
    from af.evaluation.table import write_metrics

    found = []
    for signals in signal_subsets():
        name, videos = subset_name(signals), None if len(signals) == len(SIGNALS) else 0
        settings = replace(subject.settings, conditions=name, videos=subject.settings.videos if videos is None else 0)
        chosen, folder = replace(subject, settings=settings), out / "conditions" / name
        file, extra = folder / "metrics.json", {"signals": list(signals), "clips": subject.count}
        chosen.claim(folder)
        if not file.is_file() or read_json(file).get("clips") != extra["clips"]:
            rows = _tested(trainer, chosen, folder).result.rows
            if trainer.is_global_zero:
                extra["people"] = subject.people.known
                write_metrics(folder, rows, extra, title=f"{subject.name} with {name}")
        trainer.strategy.barrier()
        found.append(Setting(name, (read_json(file),)))
    if trainer.is_global_zero:
        comparison = Comparison.of(found)
        title = f"{subject.name} on {subject.settings.data}: every subset of the signals"
        write_comparison(out / "conditions", comparison, title)
        show(comparison.console(title))
        print(f"written to {out / 'conditions'}: table.md, table.csv, table.json, plots/")
    return 0


class EvaluationCallback(Callback):
    """Rows of `af evaluate`'s table in every logger while a denoiser trains: NAME, NAME/true and NAME/null.

    The first `evaluation.limit` validation conversations are rolled out, each by one rank, before the first step and
    after validations that are `every_n_steps` apart (None: all). Faces are read from frames decoded by
    `evaluation.autoencoder`, or from latents by a fit on `evaluation.linear_probe`; without either this does nothing.
    `tags` are families or rows to keep (None: all), beside those of your own `evaluation.metrics`. Undefined values are
    left out.
    """

    def __init__(
        self,
        evaluation: CheckpointSettings,
        every_n_steps: int | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        require_number("every_n_steps", every_n_steps, least=1, whole=True, optional=True)
        self.evaluation, self.every_n_steps, self.tags = evaluation, every_n_steps, tags
        self._subject: Subject | None = None  # its networks stay out of the module tree, checkpoint and averages
        self._off = evaluation.autoencoder is None and evaluation.linear_probe is None
        self._last: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the model at the start."""
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the averaged weights, which are in the module at this point."""
        since = math.inf if self._last is None else trainer.global_step - self._last
        if not trainer.sanity_checking and since >= (self.every_n_steps or 1):
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        index = getattr(trainer.datamodule, "validation_index", None)  # type: ignore[attr-defined]
        if self._off or index is None or not trainer.loggers:
            return
        if self._subject is None:
            try:
                index = index.conversations()
            except UserError as error:
                rank_zero_warn(f"evaluation: {error}")
                self._off = True
                return
            self._subject = self._make(index, module, trainer.datamodule.features)  # type: ignore[attr-defined]
        if self._off:
            return
        self._last, subject = trainer.global_step, self._subject
        table = subject.table(module.device)
        for group in subject.groups()[trainer.global_rank :: trainer.world_size]:
            for problem in count(table, subject.measure(group, None)).values():
                rank_zero_warn(f"evaluation: {problem}")
        rows = tabled(table).rows
        values = self._values(rows, table.own_tags)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step)

    def _values(self, rows: Sequence[MetricRow], own: Set[str]) -> dict[str, float]:
        kept = None if self.tags is None else own | {*self.tags}
        values: dict[str, float] = {}
        for row in rows:
            if kept is None or row.tag in kept or row.tag.split("/")[0] in kept:
                sides = {row.tag: row.value, f"{row.tag}/true": row.ground_truth, f"{row.tag}/null": row.null}
                values |= {tag: v for tag, v in sides.items() if v is not None and math.isfinite(v)}
        return values

    def _make(self, index: Any, module: LightningModule, features: Any) -> Subject:
        settings, denoiser, device = self.evaluation, module.denoiser, module.device
        sampling: Any = module.sampling or usual_sampling({})
        avatar = probe = None
        if settings.linear_probe is not None:
            probe = LinearProbe.fit(Index.load(location(settings.linear_probe)))
        elif "b.mp4" in index.samples[0].members:
            settings = with_tracker(settings, index)
            decoder, _ = load_as(str(settings.autoencoder), MotionAutoencoder)
            avatar = Avatar(decoder.to(device).requires_grad_(False), denoiser, features)  # type: ignore[arg-type]
        if probe is None and settings.tracker is None and not settings.reads_images:
            rank_zero_warn(f"evaluation: {index.folder} shows faces that are not synthetic: choose a tracker for them")
            self._off = True
        settings.on(device)
        settings = replace(settings, videos=0)
        return Subject("", denoiser, index, settings, sampling, avatar, probe, remember={})  # type: ignore[arg-type]


def require_settings(settings: Any, part: str | None = None) -> CheckpointSettings:
    """Check the settings of a model's evaluation. Raises UserError for those of files, and, with the trained `part`,
    for missing folders.
    """
    if not isinstance(settings, CheckpointSettings):
        raise UserError(
            "evaluation: these are the settings of `af compare`, for files; a model needs others, such as `default`"
        )
    if part is not None:
        index = Index.load(location(settings.split(denoiser=part == "denoiser")))
        if part == "denoiser":
            index.conversations()
        if settings.autoencoder is not None:
            model_info(settings.autoencoder)
        if settings.linear_probe is not None:
            Index.load(location(settings.linear_probe))
    return settings
