"""Reports of an ingestion: the outcome of every conversation and of the whole, as files and as lines to read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from af.data.index import tars
from af.data.schema import SPLITS
from af.ingest.sources import Source
from af.ingest.splits import groups_of_people

REPORT: Final = "ingest_report.json"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one conversation. `reason` is None when it produced clips, else a short word for counting.

    `dropped_s` are the seconds left out of a usable conversation, by reason. `line` is the message for the user.
    `notes` are remarks on a usable conversation: {"kind", "text"} each. `cuts` are the clips of the second pass: {"key",
    "seconds" (start and end), "dropped" (why; None: kept), "quality" (measures by role)}. `media` is what was read, by
    role. `id` is the source's.
    """

    name: str
    split: str
    participants: tuple[str, str]
    clips: int = 0
    kept_s: float = 0.0
    dropped_s: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    line: str = ""
    shard: str | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    notes: tuple[dict[str, str], ...] = ()
    cuts: tuple[dict[str, Any], ...] = ()
    media: dict[str, Any] = field(default_factory=dict)
    id: str | None = None

    @classmethod
    def dropped(cls, source: Source, split: str, reason: str, line: str) -> Outcome:
        """The outcome of a conversation that was not read."""
        return cls(source.name, split, source.participants, reason=reason, line=f"{source.name}: {line}", id=source.id)

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """Read the file of an earlier run; None if it is missing, truncated or from another version."""
        try:
            data = json.loads(path.read_text("utf-8"))
            lists = {name: tuple(data.get(name, ())) for name in ("participants", "notes", "cuts")}
            return cls(**{**data, **lists})
        except (OSError, ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True)
class IngestReport:
    """The outcomes of all requested conversations, and how many were done before.

    `notes` are lines about the whole: empty splits, people with several names. `complete`: no other share has work
    left, and the report is written.
    """

    outcomes: tuple[Outcome, ...]
    done_before: int
    notes: tuple[str, ...] = ()
    complete: bool = True

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Conversations without clips."""
        return tuple(o for o in self.outcomes if o.reason is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, totals first."""
        dropped: Counter[str] = Counter()
        for outcome in self.outcomes:
            dropped.update(outcome.dropped_s)
        return {
            "conversations": len(self.outcomes),
            "clips": sum(o.clips for o in self.outcomes),
            "kept_s": round(sum(o.kept_s for o in self.outcomes), 2),
            "dropped_s": {k: round(v, 2) for k, v in sorted(dropped.items())},
            "failed": dict(Counter(str(o.reason) for o in self.failed)),
            "notes": list(self.notes),
            "notes_by_kind": dict(Counter(note["kind"] for o in self.outcomes for note in o.notes)),
            "outcomes": [asdict(o) for o in self.outcomes],
        }

    def lines(self, most: int = 5) -> list[str]:
        """Lines on what was dropped and why, the number of notes of each kind, the first `most` notes, and the
        whole.
        """
        lines = [f"dropped: {outcome.line}" for outcome in self.failed]
        found = [note for outcome in self.outcomes for note in outcome.notes]
        if found:
            counts = Counter(note["kind"] for note in found)
            lines.append(f"noted: {', '.join(f'{n} x {kind}' for kind, n in sorted(counts.items()))}")
            lines += [f"  {note['kind']}: {note['text']}" for note in found[:most]]
        if len(found) > most:
            lines.append(f"  ... and {len(found) - most} more in the report")
        return lines + [f"note: {line}" for line in self.notes]


def empty_splits(
    out: Path, sources: Sequence[Source], same: Mapping[str, str], split: str, fractions: Sequence[float] | None
) -> list[str]:
    """A line on splits without clips: why they are empty and what to do. None if they are empty as requested.

    `same`: see `splits.one_person`; `split` and `fractions`: how the conversations were assigned.
    """
    empty = [name for name in SPLITS if not tars(out / name)]
    if not empty or len(empty) == len(SPLITS):
        return []
    use = {"train": "to train", "val": "to validate a training", "test": "for `af evaluate` and held-out videos"}
    if fractions is None:
        if split != "train" or any(source.split for source in sources):
            return []  # several runs, one split each, or splits of a list's own
        why = "all went to train, as --split says by default; --split-by-identity 0.8,0.1,0.1 holds people out"
    else:
        asked = [name for name, fraction in zip(SPLITS, fractions, strict=True) if fraction > 0]
        if not (empty := [name for name in empty if name in asked]):
            return []
        pairs = [(same[a], same[b]) for a, b in (s.participants for s in sources)]
        if (groups := len(set(groups_of_people(pairs).values()))) < len(asked):
            why = (
                f"{len(sources)} conversation{'s' * (len(sources) != 1)} of {groups} group{'s' * (groups != 1)} of "
                f"unconnected people cannot fill {len(asked)} splits; add conversations of other people"
            )
        else:
            why = (
                "their conversations were dropped, or their people belong to other splits from earlier runs; add "
                "conversations, or start afresh"
            )
    return [f"{', '.join(f'no clips in {name} ({use[name]})' for name in empty)}: {why}"]
