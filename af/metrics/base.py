"""What every metric shares: how clips are measured one by one, gathered from all ranks and put into a table.

A family of metrics is one file with its definitions as functions and one `ClipMetric`; `af.metrics.families` lists them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from af.metrics.bootstrap import Interval, bootstrap_values, finish_mean, interval_of, mean_sums
from af.metrics.records import Better, EvaluationClip, MetricResult, MetricRow, face_parts
from af.types import FaceSpec

Sums = Float[np.ndarray, "N S"]
Finish = Callable[[np.ndarray], np.ndarray]
#: What most families need, in words.
FACES: Final = "face parameters"


class ClipMetric(Metric):
    """One family of metrics: `update` with one clip at a time, `compute` on all ranks.

    A family says in `measure` what it keeps of a clip (its sums, and series where the definition needs all clips), and
    in `tabulate` which rows these make. Clips are gathered over ranks, ordered by `position` and name, and counted once
    (a repeat is the padding of distributed validation): every number of ranks gives the same bits.
    """

    #: {first part of its tags: what a clip must have for them}; a tag without a row is reported absent with this text.
    needs: ClassVar[Mapping[str, str]] = {}
    #: Tags shown where there is room for a few: beside curves, as columns of a comparison.
    headline: ClassVar[tuple[str, ...]] = ()
    #: Tags that a clip's card shows first.
    on_card: ClassVar[tuple[str, ...]] = ()

    #: Whether it counts the clips with face parameters (a family of anything else overrides `takes`).
    of_faces: ClassVar[bool] = True

    full_state_update = False
    is_differentiable = False
    blobs: list[Tensor]
    sizes: list[Tensor]

    def __init__(self, *, resamples: int = 1000, seed: int = 0) -> None:
        super().__init__()
        self.resamples, self.seed = resamples, seed
        self.add_state("blobs", [], dist_reduce_fx="cat")
        self.add_state("sizes", [], dist_reduce_fx="cat")

    @property
    def update_called(self) -> bool:
        """True: without a clip, a rank computes what the others have, and one alone says what is absent."""
        return True

    def takes(self, clip: EvaluationClip) -> bool:
        """Whether the clip counts at all."""
        return clip.face is not None or not self.of_faces

    def measure(self, clip: EvaluationClip) -> Mapping[str, Any]:
        """Arrays that are kept of one clip, by name."""
        raise NotImplementedError

    def tabulate(self, table: ClipTable) -> None:
        """Put the rows, curves and values of single clips into `table`, which holds what was kept of all clips."""
        raise NotImplementedError

    def update(self, clip: EvaluationClip) -> None:
        """Measure one clip. Raises ValueError naming a clip whose sides have different shapes."""
        if not self.takes(clip):
            return
        face = clip.face
        if face is not None:
            shapes = {name: np.shape(getattr(clip, name)) for name in ("user", "true", "generated")}
            if len(set(shapes.values())) != 1 or shapes["user"][1:] != (len(face.names),):
                raise ValueError(f"{clip.name}: shapes {shapes} for {len(face.names)} parameters")
        header = {
            "name": clip.name,
            "position": clip.position or 0,
            "identity": clip.identity,
            "session": clip.session or clip.name,
            "face": face and [face.names, face.expression, face.tracker],
            "digests": {part: list(digests) for part, digests in clip.digests.items()},
        }
        file = io.BytesIO()
        np.savez(file, header=np.array(json.dumps(header)), **self.measure(clip))
        blob = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8).to(self.device)
        self.blobs.append(blob)
        self.sizes.append(torch.tensor([len(blob)], device=self.device))

    def compute(self) -> MetricResult:
        """Rows of the clips of all ranks; without a clip none, and `absent` says why."""
        table = ClipTable(self._records(), self)
        if table.records:
            self.tabulate(table)
        for tag, needed in self.needs.items():
            if not any(row.tag.split("/")[0] == tag for row in table.result.rows):
                table.result.absent[tag] = f"needs {needed}"
        table.result.on_card = [t for t in self.on_card if any(t in v for v in table.result.per_clip.values())]
        return table.result

    def _records(self) -> list[Record]:
        blobs, sizes = (
            np.concatenate([t.cpu().numpy() for t in ([state] if isinstance(state, Tensor) else state)])
            if len(state)
            else np.zeros(0, np.uint8)
            for state in (self.blobs, self.sizes)
        )
        found: dict[str, Record] = {}
        for stop, size in zip(np.cumsum(sizes, dtype=int), sizes.astype(int), strict=True):
            record = Record(blobs[stop - size : stop])
            found.setdefault(record.name, record)
        return sorted(found.values(), key=lambda record: (record.position, record.name))

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # torchmetrics sends an empty tensor of floats for a rank without clips, which other ranks cannot join
        if not self.sizes:
            self.blobs = [torch.zeros(0, dtype=torch.uint8, device=self.device)]
            self.sizes = [torch.zeros(0, dtype=torch.int64, device=self.device)]
        super()._sync_dist(*args, **kwargs)


class Record:
    """What a metric has kept of one clip: who it is, and arrays by name."""

    def __init__(self, blob: np.ndarray) -> None:
        with np.load(io.BytesIO(blob.tobytes()), allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        header = json.loads(str(self.arrays.pop("header")))
        self.name: str = header["name"]
        self.position: int = header["position"]
        self.identity: str = header["identity"]
        self.session: str = header["session"]
        self.digests: dict[str, list[str]] = header["digests"]
        face = header["face"]
        self.face = None if face is None else FaceSpec(tuple(face[0]), face[1], face[2])


class ClipTable:
    """What a metric has kept of all clips, in order, and the result that its rows go into.

    Clips of one true avatar count as one identity and those of one user as one session, whatever they are called, so
    that no null pairs a clip with itself under another name and no interval counts it as two.
    """

    def __init__(self, records: Sequence[Record], metric: ClipMetric) -> None:
        self.records = list(records)
        self.result = MetricResult()
        self.result.per_clip = {record.name: {} for record in records}
        self._headline, self._resamples, self._seed = metric.headline, metric.resamples, metric.seed
        _unify(self.records)
        self.identities = [record.identity for record in records]
        by_identity = len(set(self.identities)) >= 8
        self.groups = self.identities if by_identity else None
        #: For each clip another one, whose user makes the null; None with a single clip.
        self.partner = partners([(record.session, record.identity) for record in records])
        self._face = self._one_face()
        tracker = "" if self._face is None else f"{self._face.tracker}, "
        self.base = f"{tracker}25 fps, interval over {'identities' if by_identity else 'clips'}"
        whose = "user shifted by half the clip" if self.partner is None else "user of another clip"
        self.null_is = f"null: {whose}"

    def _one_face(self) -> FaceSpec | None:
        first = next((record.face for record in self.records if record.face is not None), None)
        for record in self.records:
            if record.face is not None and first is not None and record.face != first:
                raise ValueError(
                    f"{record.name}: tracker {record.face.tracker!r} beside {first.tracker!r}: never mix them"
                )
        return first

    @property
    def face(self) -> FaceSpec:
        """The layout that all clips share."""
        assert self._face is not None, "a metric of faces takes no clip without one"
        return self._face

    @property
    def parts(self) -> dict[str, slice]:
        """As `EvaluationClip.parts`."""
        return face_parts(self.face)

    def __contains__(self, name: str) -> bool:
        return any(name in record.arrays for record in self.records)

    def __getitem__(self, name: str) -> list[np.ndarray]:
        """The array called `name` of each clip."""
        return [record.arrays[name] for record in self.records]

    def sums(self, name: str) -> Sums:
        """The same stacked, a row a clip."""
        return np.stack(self[name])

    def of_partners(self, series: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Another clip's series for each clip, cut or run round to its length; of a single clip its own, half a clip off."""
        if self.partner is None:
            return [np.roll(x, len(x) // 2, axis=0) for x in series]
        return [fit_length(series[j], len(x)) for j, x in zip(self.partner, series, strict=True)]

    def add(
        self,
        tag: str,
        sums: Sums,
        finish: Finish = finish_mean,
        *,
        true: float | Sums | None = None,
        null: Sums | None = None,
        protocol: str = "",
        better: Better = "true",
        per_clip: bool = True,
    ) -> None:
        """A row from per-clip sums: value, bootstrap interval, the same of the truth and of the null."""
        own = np.asarray(finish(sums), np.float64)
        if per_clip:
            self.clip_values(tag, own)
        value = float(finish(sums.sum(axis=0)))
        self.row(
            MetricRow(
                tag,
                value,
                self.interval(tag, sums, finish),
                int(np.isfinite(own).sum()) if per_clip else len(self.records),
                float(finish(true.sum(0))) if isinstance(true, np.ndarray) else true,
                None if null is None else float(finish(null.sum(axis=0))),
                f"{protocol}; {self.base}" if protocol else self.base,
                better,
                note="" if np.isfinite(value) else "undefined: a series is constant, not finite or too short",
            )
        )

    def mean(self, tag: str, values: Float[np.ndarray, " N"], *, true: Any = None, **options: Any) -> None:
        """A row that is the mean of one value a clip (and of the `true` ones), NaN left out; `options` of `add`."""
        self.add(tag, mean_sums(values), true=mean_sums(true) if np.ndim(true) else true, **options)

    def row(self, row: MetricRow) -> None:
        """A row that is made elsewhere; the family says whether it is a headline."""
        self.result.rows.append(replace(row, headline=row.tag in self._headline))

    def clip_values(self, tag: str, values: Sequence[float] | np.ndarray) -> None:
        """The clips' own numbers."""
        for record, value in zip(self.records, values, strict=True):
            self.result.per_clip[record.name][tag] = float(value)

    def interval(self, tag: str, sums: Sums, finish: Finish) -> Interval | None:
        """The bootstrap interval, its draws kept; None when there is nothing to resample."""
        if len(set(self.groups) if self.groups is not None else sums) < 2:
            return None
        values = bootstrap_values(sums, finish, self.groups, self._resamples, self._seed)
        self.result.draws[tag] = values
        return interval_of(values)


def _unify(records: Sequence[Record]) -> None:
    identity: dict[str, str] = {}
    session: dict[str, str] = {}
    for record in records:
        people = record.digests.get("true", ())
        users = [*record.digests.get("user", ()), *people]
        record.identity = next((identity[d] for d in people if d in identity), record.identity)
        record.session = next((session[d] for d in users if d in session), record.session)
        identity |= dict.fromkeys(people, record.identity)
        session |= dict.fromkeys(users, record.session)


def partners(clips: Sequence[tuple[str, str]]) -> list[int] | None:
    """For each (session, identity) another clip's number, of another session and identity where there is one.

    None with fewer than two clips: there is nobody to make a null of.
    """
    if len(clips) < 2:
        return None
    chosen = []
    for i, (session, identity) in enumerate(clips):
        others = [(i + step) % len(clips) for step in range(1, len(clips))]
        shared = {j: 2 * (clips[j][0] == session) + (clips[j][1] == identity) for j in others}
        chosen.append(min(others, key=shared.__getitem__))  # the first of the best
    return chosen


def fit_length(values: np.ndarray, length: int) -> np.ndarray:
    """Cut to `length`, or run round from the start until it is reached."""
    return values[np.arange(length) % len(values)]
