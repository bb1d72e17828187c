"""The base of all metrics: clips are measured one by one, gathered from all ranks and put into a table.

A family of metrics is one file with its definitions as functions and one `ClipMetric`; see `af.metrics.families`.
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
from af.metrics.records import Better, EvaluationClip, MetricResult, MetricRow, digest, face_parts
from af.types import FaceSpec

Sums = Float[np.ndarray, "N S"]
Finish = Callable[[np.ndarray], np.ndarray]
#: Requirements shared by most families, for messages.
FACES: Final = "face parameters"


class ClipMetric(Metric):
    """One family of metrics: `update` with one clip at a time, `compute` on all ranks.

    `measure` returns the data kept of a clip: sums, or series if the definition needs all clips. `tabulate` makes rows
    of it. Clips are gathered over ranks, ordered by `position` and name, and counted once (repeats are padding of
    distributed validation), so results are bit-identical for any number of ranks.
    """

    #: {first part of a tag: what clips need for it}; a tag without a row is reported as absent with this text.
    needs: ClassVar[Mapping[str, str]] = {}
    #: The most important tags, shown beside curves and as columns of a comparison.
    headline: ClassVar[tuple[str, ...]] = ()
    #: Tags shown first on a clip's card.
    on_card: ClassVar[tuple[str, ...]] = ()

    #: Whether it measures clips with face parameters (other families override `takes`).
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
        """True: a rank without clips computes from those of others, or reports all rows as absent."""
        return True

    def takes(self, clip: EvaluationClip) -> bool:
        """Whether this family measures the clip."""
        return clip.face is not None or not self.of_faces

    def measure(self, clip: EvaluationClip) -> Mapping[str, Any]:
        """The arrays to keep of one clip, by name."""
        raise NotImplementedError

    def tabulate(self, table: ClipTable) -> None:
        """Add rows, curves and values of single clips to `table`, which holds the data of all clips."""
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
        """Rows from the clips of all ranks; without clips there are none, and `absent` says why."""
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
        # for a rank without clips, torchmetrics sends an empty float tensor that others cannot join
        if not self.sizes:
            self.blobs = [torch.zeros(0, dtype=torch.uint8, device=self.device)]
            self.sizes = [torch.zeros(0, dtype=torch.int64, device=self.device)]
        super()._sync_dist(*args, **kwargs)


class Record:
    """Data that a metric keeps of one clip: names, and arrays by name."""

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
    """Data that a metric keeps of all clips, in order, and the result for its rows.

    Clips with the same true avatar are one identity and clips with the same user one session, whatever their names: no
    null pairs a clip with itself under another name, and no interval counts it twice.
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
        #: The partner of each clip, with the user for its null; None with a single clip.
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
        """The face layout shared by all clips."""
        assert self._face is not None, "a metric of faces takes no clip without one"
        return self._face

    @property
    def parts(self) -> dict[str, slice]:
        """See `EvaluationClip.parts`."""
        return face_parts(self.face)

    def __contains__(self, name: str) -> bool:
        return any(name in record.arrays for record in self.records)

    def __getitem__(self, name: str) -> list[np.ndarray]:
        """The array `name` of each clip."""
        return [record.arrays[name] for record in self.records]

    def sums(self, name: str) -> Sums:
        """The array `name` of all clips, stacked: one row per clip."""
        return np.stack(self[name])

    def contents(self, *names: str) -> str:
        """Identities of all clips and hashes of these arrays: what is fitted on equal contents need not be fitted again."""
        return " ".join([*self.identities, *(digest(values) for name in names for values in self[name])])

    def of_partners(self, series: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The partner's series for each clip, cut or wrapped to its length; a single clip's own, shifted by half."""
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
        """Add a row from per-clip sums: value, bootstrap interval, ground truth and null."""
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

    def mean(
        self, tag: str, values: Float[np.ndarray, " N"], *, true: Any = None, null: Any = None, **options: Any
    ) -> None:
        """Add a row with the mean of one value per clip (of `true` and `null` too), ignoring NaN; `options` as for `add`."""
        sides: dict[str, Any] = {
            "true": mean_sums(true) if np.ndim(true) else true,
            "null": None if null is None else mean_sums(null),
        }
        self.add(tag, mean_sums(values), **sides, **options)

    def row(self, row: MetricRow) -> None:
        """Add a finished row; the family decides whether it is a headline."""
        self.result.rows.append(replace(row, headline=row.tag in self._headline))

    def clip_values(self, tag: str, values: Sequence[float] | np.ndarray) -> None:
        """Add one value per clip for a tag."""
        for record, value in zip(self.records, values, strict=True):
            self.result.per_clip[record.name][tag] = float(value)

    def interval(self, tag: str, sums: Sums, finish: Finish) -> Interval | None:
        """The bootstrap interval, whose draws are kept; None without anything to resample."""
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
    """For each (session, identity) the index of another clip, of another session and identity if possible.

    None with fewer than two clips, which have no null.
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
    """Cut to `length`, or repeated from the start to reach it."""
    return values[np.arange(length) % len(values)]
