"""What is in a folder of shards: totals from its indexes, and single samples as ordinary files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import soundfile

from af.clock import SAMPLE_RATE, frames_to_seconds
from af.data.index import Index, split_folders
from af.data.selection import MEASURES
from af.data.shards import ShardReader
from af.data.stores import Location
from af.data.video_writer import write_video
from af.errors import UserError
from af.files import atomic_path


@dataclass(frozen=True)
class SplitStats:
    """Totals of one split folder. `one_sided` samples show one person; `fields` counts the samples with each member;
    `valid`: share of frames with a face; `measures`: 5th, 50th and 95th percentile over people in clips, and how many of
    them are unknown.
    """

    folder: str
    split: str
    shards: int
    samples: int
    one_sided: int
    hours: float
    people: int
    sessions: int
    gigabytes: float
    image_size: int | None
    clip_s: tuple[float, float, float]
    valid: float
    fields: dict[str, int]
    gigabytes_by_field: dict[str, float]
    specs: dict[str, Any]
    measures: dict[str, tuple[float, float, float, int]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def rows(self) -> dict[str, str]:
        """Rows of a table: texts by label."""
        sizes: dict[str, float] = {}
        for name, size in sorted(self.gigabytes_by_field.items()):
            if name != "json":
                sizes[name[2:]] = sizes.get(name[2:], 0.0) + size
        return {
            **{name: f"{getattr(self, name):,}" for name in ("samples", "people", "sessions", "shards")},
            **({"of one person alone": f"{self.one_sided:,}"} if self.one_sided else {}),
            "hours": f"{self.hours:.2f}",
            "GB": f"{self.gigabytes:.3f}",
            "pixels": str(self.image_size or "-"),
            "clip s (shortest, median, longest)": ", ".join(f"{v:g}" for v in self.clip_s),
            "frames with a face": f"{self.valid:.1%}",
            **{f"GB of {part}": f"{size:.3f}" for part, size in sorted(sizes.items())},
            **{f"{name} (5, 50, 95 %)": _spread(*values) for name, values in self.measures.items()},
            **{f"{name} spec": _spec(self.specs.get(name)) for name in ("audio", "motion", "face")},
        }


def _spread(low: float, middle: float, high: float, unknown: int) -> str:
    return f"{low:.4g}, {middle:.4g}, {high:.4g}" + (f" ({unknown} unknown)" if unknown else "")


def _spec(spec: dict[str, Any] | None) -> str:
    if spec is None:
        return "-"
    if "extractor" in spec:
        window = f" {spec['block_frames']}/{spec['window_frames']}" if spec["block_frames"] else ""
        return f"{spec['extractor']} {spec['version']}, {spec['dim']} dims, {spec['mode']}{window}"
    if "autoencoder" in spec:
        return f"{spec['dim']} dims, {spec['directions']} directions, {spec['autoencoder'][:8]}"
    return f"{len(spec['names'])} parameters, {spec['tracker']}"


def stats(root: Location | str) -> Sequence[SplitStats]:
    """Totals of every split below `root`, or of `root` as a split folder. Raises `UserError` without an index."""
    return [_of(Index.load(folder)) for folder in split_folders(root)]


def _of(index: Index) -> SplitStats:
    seconds = [frames_to_seconds(s.frames) for s in index.samples] or [0.0]
    measures: dict[str, tuple[float, float, float, int]] = {}
    people = [sample.quality.get(role, {}) for sample in index.samples if sample.quality for role in sample.roles]
    for name in MEASURES:
        if known := [value for one in people if (value := one.get(name)) is not None]:
            low, middle, high = (float(v) for v in np.percentile(known, [5, 50, 95]))
            measures[name] = (low, middle, high, len(people) - len(known))
    fields: dict[str, int] = {}
    sizes: dict[str, float] = {}
    valid, one_sided = 0, sum(len(s.roles) == 1 for s in index.samples)
    shown = sum(len(s.roles) * s.frames for s in index.samples)
    for sample in index.samples:
        valid += sum(stop - start for runs in sample.valid.values() for start, stop in runs)
        for name, (_, size) in sample.members.items():
            fields[name] = fields.get(name, 0) + 1
            sizes[name] = sizes.get(name, 0.0) + size / 1e9
    return SplitStats(
        folder=str(index.folder),
        split=index.split,
        shards=len(index.shards),
        samples=len(index.samples),
        one_sided=one_sided,
        hours=round(frames_to_seconds(index.frames) / 3600, 4),
        people=len({p for s in index.samples for p in s.participants}),
        sessions=len({s.session for s in index.samples}),
        gigabytes=round(sum(s.bytes for s in index.shards) / 1e9, 6),
        image_size=index.image_size,
        clip_s=(round(min(seconds), 2), round(float(np.median(seconds)), 2), round(max(seconds), 2)),
        valid=round(valid / max(shown, 1), 4),
        fields=dict(sorted(fields.items())),
        gigabytes_by_field={name: round(size, 6) for name, size in sorted(sizes.items())},
        specs=dict(index.specs),
        measures=measures,
    )


#: File names by role: person a is the user, person b the avatar, as in evaluation.
NAMES = {"a": "user", "b": "avatar"}


def extract(folder: Location, sample: int, out: Path) -> list[Path]:
    """Write `user.mp4`, `user.wav` and `user.png` (first frame), and likewise for `avatar` (of a one-sided sample
    only these); returns the paths.

    Raises UserError when there is no such sample, ShardError when it holds no video or audio.
    """
    reader = ShardReader(folder)
    if not 0 <= sample < len(reader):
        raise UserError(f"{folder} has samples 0 to {len(reader) - 1}, but no {sample}")
    clip = reader.read(sample, {"video", "audio"})
    written = []
    roles = reader.index.samples[sample].roles
    for role in roles:
        person, name = clip.person(role), NAMES[role if len(roles) == 2 else "b"]
        assert person.video is not None
        assert person.audio is not None
        paths = [out / f"{name}{suffix}" for suffix in (".mp4", ".wav", ".png")]
        write_video(paths[0], person.video, person.audio, crf=12)
        with atomic_path(paths[1]) as temporary:
            soundfile.write(temporary, person.audio, SAMPLE_RATE, format="WAV")
        with atomic_path(paths[2]) as temporary:
            temporary.write_bytes(cv2.imencode(".png", person.video[0, ..., ::-1])[1].tobytes())
        written += paths
    return written
