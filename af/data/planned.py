"""The source of a denoiser's windows, and the reader that takes them in an exactly planned order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from af.data.events import listener_activity, start_weights
from af.data.index import Index
from af.data.loader import training_loader
from af.data.mixture import MixedPlan, joined
from af.data.plan import EndlessPlan, Plan, WindowItem, WindowPlan
from af.data.shards import ShardReader
from af.data.stores import Location
from af.data.windows import Listening, WindowDataset
from af.errors import UserError
from af.specs import TeacherSpec


@dataclass(frozen=True)
class WindowSource:
    """Training data of a denoiser: windows of `frames` frames from the sets `indexes`, mixed by `weights`.

    Starts are multiples of `block` frames. `listening` marks frames in which the avatar is silent. `losers` and
    `teacher` (a split's folders), `noise_of` and `activity` (the `Listening` for `balance`) are as in `WindowDataset`
    and `af.data.events`.
    """

    indexes: Sequence[Index]
    weights: Sequence[float]
    frames: int
    block: int = 1
    seed: int = 0
    listening: Listening | None = None
    losers: Location | None = None
    teacher: Location | None = None
    noise_of: Callable[[TeacherSpec, str, str, int], Tensor] | None = None
    balance: float = 0.0
    activity: Listening | None = None


def mixed_plan(plans: Sequence[EndlessPlan], weights: Sequence[float], seed: int) -> Plan:
    """The plan of one set, or of several mixed by weight."""
    return plans[0] if len(plans) == 1 else MixedPlan(plans, weights, seed=seed)


@dataclass(frozen=True)
class PlannedReader:
    """`data/reader=planned`: single windows in an order given by the seed, resumed at the exact sample.

    The order is shuffled within groups of `group_shards` shards, to read remote shards a group at a time.
    """

    group_shards: int = 16

    def __post_init__(self) -> None:
        if self.group_shards < 1:
            raise UserError(f"data.reader.group_shards: {self.group_shards}; expected at least 1")

    def loader(
        self, source: WindowSource, batch_size: int, *, state: Mapping[str, Any] | None = None, **options: Any
    ) -> DataLoader:
        """Endless batches for this rank; `options` as for `training_loader`."""
        plan: Plan[WindowItem] = mixed_plan(
            [self._plan(i, source) for i in source.indexes], source.weights, source.seed
        )
        dataset = WindowDataset(
            ShardReader(joined(source.indexes)),
            plan,
            frames=source.frames,
            losers=source.losers,
            teacher=source.teacher,
            noise_of=source.noise_of,
            listening=source.listening,
        )
        return training_loader(dataset, batch_size, start=(state or {}).get("samples", 0), **options)

    def _plan(self, index: Index, source: WindowSource) -> WindowPlan:
        sizes = {"frames": source.frames, "block": source.block}
        weights = None
        if source.balance and source.activity:
            weights = start_weights(index, listener_activity(index, source.activity), balance=source.balance, **sizes)
        return WindowPlan(index, seed=source.seed, weights=weights, group_shards=self.group_shards, **sizes)

    def state(
        self,
        source: WindowSource,
        before: Mapping[str, Any] | None,
        samples: int,
        batch_size: int,
        slots: tuple[int, int],
    ) -> dict[str, Any]:
        """The state for resuming after `samples` of all ranks, independent of the number of ranks."""
        return {"samples": samples}

    def told(self, state: Mapping[str, Any]) -> str | None:
        """None: no window is read twice or left out."""
        return None
