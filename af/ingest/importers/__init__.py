"""Public data sets as they are published: an importer maps a folder, here or behind a URL, to the rows of a manifest.

Every importer cites the description of the layout that it reads. It keeps the set's ids and splits, and reports files
that lack a partner. Archives (tar) are read where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from af.console import progress_bar
from af.data.fetching import local_copy
from af.data.stores import RemotePath, location
from af.data.tables import Row
from af.errors import UserError
from af.ingest.importers import candor, hdtf, realtalk, responsenet, seamless, vico
from af.ingest.options import IngestOptions
from af.ingest.sources import Rejected, Source, from_rows


@dataclass(frozen=True)
class Importer:
    """`rows` maps a folder to rows of a manifest, from files with the suffixes `reads` or tar archives of them; `dataset`
    and `licence` are recorded in the shards.
    """

    dataset: str
    licence: str
    rows: Callable[[Path], Iterator[Row]]
    reads: frozenset[str]


def _importer(dataset: str, licence: str, rows: Callable[[Path], Iterator[Row]], *reads: str) -> Importer:
    return Importer(dataset, licence, rows, frozenset({*reads, ".tar"}))


IMPORTERS: Final[Mapping[str, Importer]] = {
    "seamless": _importer("Seamless Interaction", "CC-BY-NC-4.0", seamless.rows, ".mp4", ".wav"),
    "realtalk": _importer("RealTalk", "Apache-2.0", realtalk.rows, ".avi", ".wav"),
    "vico": _importer("ViCo", "unknown", vico.rows, ".csv", ".mp4", ".wav"),
    "responsenet": _importer("ResponseNet", "CC-BY-NC-4.0", responsenet.rows, ".mp4", ".wav"),
    "candor": _importer(
        "CANDOR", "CANDOR-Corpus-License-2.1: no synthetic media of participants", candor.rows, ".mp4", ".json"
    ),
    "hdtf": _importer("HDTF", "unknown", hdtf.rows, ".mp4", ".txt"),
}
#: In the output folder: what was fetched from a URL.
FETCHED: Final = "fetched"


def import_set(
    name: str, place: str, options: IngestOptions, out: Path
) -> tuple[list[Source], list[Rejected], IngestOptions]:
    """The sources in a copy of a data set, or a part of one, what cannot be used, and `options` with the set's name and
    licence, unless they are given. What is behind a URL is first fetched into a folder of `out`.

    Raises `UserError` for an unknown set, a folder that is missing, a URL that cannot be read, and when nothing in it
    fits the set's layout.
    """
    if name not in IMPORTERS:
        known = ", ".join(IMPORTERS)
        raise UserError(
            f"--from {name}: there are importers of {known}; a manifest lists other sets (docs/datasets.md)"
        )
    importer, where = IMPORTERS[name], location(place)
    if isinstance(where, RemotePath):
        folder = _fetched(where, out / FETCHED, importer)
    else:
        folder = where.expanduser().absolute()
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


def _fetched(place: RemotePath, folder: Path, importer: Importer) -> Path:
    with progress_bar() as bar:
        task = bar.add_task("fetching, MB", total=None)

        def watch(name: str, done: int, total: int) -> None:
            megabytes = {"completed": round(done / 1e6, 1), "total": round(total / 1e6, 1)}
            bar.update(task, **megabytes, description=f"fetching, MB: {name}".rstrip(": "))

        return local_copy(place, folder.absolute(), importer.reads, watch)
