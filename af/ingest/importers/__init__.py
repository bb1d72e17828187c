"""Public data sets as they are published: an importer maps a folder to the rows of a manifest.

Every importer cites the description of the layout that it reads. It keeps the set's ids and splits, and reports files
that lack a partner. Archives (tar) are read where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from af.data.tables import Row
from af.errors import UserError
from af.ingest.importers import hdtf, realtalk, seamless, vico
from af.ingest.options import IngestOptions
from af.ingest.sources import Rejected, Source, from_rows


@dataclass(frozen=True)
class Importer:
    """`rows` maps a folder to rows of a manifest; `dataset` and `licence` are recorded in the shards."""

    dataset: str
    licence: str
    rows: Callable[[Path], Iterator[Row]]


IMPORTERS: Final[Mapping[str, Importer]] = {
    "seamless": Importer("Seamless Interaction", "CC-BY-NC-4.0", seamless.rows),
    "realtalk": Importer("RealTalk", "Apache-2.0", realtalk.rows),
    "vico": Importer("ViCo", "unknown", vico.rows),
    "hdtf": Importer("HDTF", "unknown", hdtf.rows),
}


def import_set(name: str, place: str, options: IngestOptions) -> tuple[list[Source], list[Rejected], IngestOptions]:
    """The sources in a local copy of a data set, or a part of one, what cannot be used, and `options` with the set's
    name and licence, unless they are given.

    Raises `UserError` for an unknown set, a folder that is missing, and when nothing in it fits the set's layout.
    """
    if name not in IMPORTERS:
        known = ", ".join(IMPORTERS)
        raise UserError(
            f"--from {name}: there are importers of {known}; a manifest lists other sets (docs/datasets.md)"
        )
    if "://" in place:
        raise UserError(f"--from: {place} is not on this machine; fetch it first (docs/datasets.md), whole or in parts")
    importer, folder = IMPORTERS[name], Path(place).expanduser().absolute()
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    sources, rejected = from_rows(importer.rows(folder), folder)
    if not sources and not rejected:
        raise UserError(
            f"{folder}: nothing in it is named as in {importer.dataset} (docs/datasets.md shows its layout)"
        )
    default = IngestOptions
    dataset = importer.dataset if options.dataset == default.dataset else options.dataset
    licence = importer.licence if options.licence == default.licence else options.licence
    return sources, rejected, replace(options, dataset=dataset, licence=licence)
