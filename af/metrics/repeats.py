"""Finding repeated clips, and clips compared with themselves, by content."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations

from af.metrics.base import ClipMetric, ClipTable, partners
from af.metrics.records import PARTS, EvaluationClip


def repeats(clips: Mapping[str, Mapping[str, Collection[str]]]) -> dict[str, list[str]]:
    """{clip: remarks} on parts equal within a clip or to an earlier clip, from {clip: digests}."""
    remarks: dict[str, list[str]] = {}
    first: dict[str, tuple[str, str]] = {}
    for name, parts in clips.items():
        said = remarks.setdefault(name, [])
        for one, other in combinations(parts, 2):
            if set(parts[one]) & set(parts[other]):
                said.append(
                    f"the {PARTS[one]} and the {PARTS[other]} are the same: a clip compared with itself is always perfect"
                )
        shared: dict[str, list[str]] = {}
        for part, digests in parts.items():
            where = next((first[d] for d in digests if d in first and first[d][0] != name), None)
            if where is not None:
                words = PARTS[part] if where[1] == part else f"{PARTS[part]} (there the {PARTS[where[1]]})"
                shared.setdefault(where[0], []).append(words)
            for d in digests:
                first.setdefault(d, (name, part))
        said += [
            f"not another sample than clip {other}: the same {', '.join(words)}" for other, words in shared.items()
        ]
    return {name: said for name, said in remarks.items() if said}


class Repeats(ClipMetric):
    """Remarks, without rows, on repeated clips and on clips with a null that equals the truth."""

    of_faces = False  # every clip

    def measure(self, clip: EvaluationClip) -> dict:
        """Nothing besides the digests, which are always kept."""
        return {}

    def tabulate(self, table: ClipTable) -> None:
        """`MetricResult.remarks`."""
        remarks = repeats({record.name: record.digests for record in table.records})
        faces = [record for record in table.records if record.face is not None]
        for record, other in zip(faces, partners([(r.session, r.identity) for r in faces]) or (), strict=False):
            if set(record.digests.get("user", ())) & set(faces[other].digests.get("user", ())):
                remarks.setdefault(record.name, []).append(
                    f"its null is the truth: {faces[other].name}, the only clip to pair it with, has the same user"
                )
        table.result.remarks = remarks
