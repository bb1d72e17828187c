"""Reading tables written by hand or saved from a spreadsheet (.csv, .json, .jsonl) as rows of texts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from af.errors import UserError

#: A row's location ("pairs.csv, entry 3") and its values by column, or the fault of this row.
Row = tuple[str, Mapping[str, Any] | UserError]

_BOMS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_rows(path: Path, columns: Collection[str], *, inside: str | None = None) -> list[Row]:
    """Every row of a table whose columns are among `columns`; cells are texts, empty ones None.

    Accepts what spreadsheets save: UTF-8 with or without a mark, UTF-16, commas, semicolons or tabs, spaces around
    names, empty rows. JSON is a list of objects (or an object with one under `inside`), .jsonl has one object per line.
    A faulty row is returned as its error. Raises `UserError` for faults of the table: no such file, no rows, an unknown
    column, a quote that never closes.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a manifest' if path.is_dir() else 'no such manifest file'}")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise UserError(f"{path}: a manifest ends in {', '.join(_READERS)}; save a spreadsheet as CSV")
    try:
        found = list(_READERS[suffix](path, _decoded(path.read_bytes()), columns, inside))
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: not a readable manifest ({error})") from None
    rows = [(f"{path}, entry {number}", _checked(row, columns)) for number, row in enumerate(found, 1)]
    if not rows:
        raise UserError(f"{path}: the manifest lists nothing")
    return rows


def _decoded(data: bytes) -> str:
    """Text of a file; bytes that are not UTF-8 become lone surrogates, to affect only their own row."""
    for mark, encoding in _BOMS.items():
        if data.startswith(mark):
            return data.decode(encoding)
    if data[1:2] == b"\0" or data[:1] == b"\0":  # no mark: every other byte of plain text is 0
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be")
    return data.decode("utf-8-sig", "surrogateescape")


def _csv_rows(path: Path, text: str, columns: Collection[str], _: str | None) -> Iterator[Any]:
    first, _, rest = text.partition("\n")
    if said := re.fullmatch(r"sep=(.)\s*", first):  # Excel's declaration of the delimiter
        text = rest
    head = next((line for line in re.split("[\r\n]", text) if line.strip(" ,;\t")), "")
    delimiter = said[1] if said else max(",;\t", key=head.count)
    # not str.splitlines: names may contain U+2028 and similar
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    filled = (cells for cells in lines if any(cell.strip() for cell in cells))  # spreadsheets leave trailing empty rows
    header = [name.strip().lower() for name in next(filled, [])]
    if unknown := [name for name in header if name and name not in columns]:
        raise UserError(f"{path}: unknown column {shown(', '.join(unknown))}; allowed: {', '.join(columns)}")
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise UserError(f"{path}: column {', '.join(sorted(twice))} is there twice")
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as error:
            if "end of data" in str(error) or "field limit" in str(error):
                raise UserError(f"{path}: a quote that opens before line {lines.line_num} never closes") from None
            yield UserError(str(error))
            continue
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if more := [cell for cell in cells[len(header) :] if cell.strip()]:
            yield UserError(
                f"more values than columns ({shown(', '.join(more))}); quote values that hold a {delimiter!r}"
            )
        else:
            yield {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _json_rows(path: Path, text: str, _: Collection[str], inside: str | None) -> Iterator[Any]:
    rows = json.loads(text, object_pairs_hook=_each_once)
    if inside is not None and isinstance(rows, dict) and inside in rows:
        rows = rows[inside]
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects")
    yield from rows


def _json_lines(path: Path, text: str, _: Collection[str], inside: str | None) -> Iterator[Any]:
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line, object_pairs_hook=_each_once)
            except (ValueError, RecursionError) as error:
                yield UserError(f"not JSON ({error})")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any] | UserError:
    """A JSON object, or an error for repeated names, of which JSON would keep only the last value."""
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        return UserError(f"column {shown(', '.join(sorted(twice)))} is there twice")
    return dict(pairs)


def _checked(row: Any, columns: Collection[str]) -> Mapping[str, Any] | UserError:
    if isinstance(row, UserError):
        return row
    if not isinstance(row, Mapping):
        return UserError(f"expected an object with the columns {', '.join(columns)}")
    if unknown := [str(name) for name in row if name not in columns]:
        return UserError(f"unknown column {shown(', '.join(unknown))}; allowed: {', '.join(columns)}")
    for name, value in row.items():
        if isinstance(value, str) and (fault := unreadable_text(value)):
            return UserError(f"{name} {shown(value)} {fault}")
    return {name: None if isinstance(value, str) and not value.strip() else value for name, value in row.items()}


#: By suffix; spreadsheets call tab-separated UTF-16 "Unicode text" (.txt).
_READERS = dict.fromkeys((".csv", ".tsv", ".txt"), _csv_rows) | {".json": _json_rows, ".jsonl": _json_lines}


def unreadable_text(text: str) -> str | None:
    """Why a text cannot be a name or path (NUL, or bytes that are not UTF-8); None if it can."""
    if "\0" in text:
        return "holds a NUL character"
    if re.search("[\ud800-\udfff]", text):
        return "is not UTF-8: save the list as UTF-8, or rename the file"
    return None


def shown(text: str) -> str:
    """`text` on one line, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
