"""Writes configuration.md from conf/: every file with its values and comments. `make docs` runs it, a test compares."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

CONF = Path(__file__).resolve().parents[1] / "conf"
INTRO = """# Configuration reference

Made from `conf/` by `make docs`; do not edit. Every value can be set on the command line (`af train experiment=vae_demo
optimizer.lr=1e-3`), a file of a group is chosen by its name (`trainer=ddp`); a key that is not there yet needs a plus
(`+trainer.limit_val_batches=4`). `--print-config` shows what comes out, `--config-dir FOLDER` adds files of your own.
`???` must be given, `null` is nothing, `${key}` is the value of another key. Keys below `trainer` that are not listed are
Lightning's `Trainer` arguments.
"""
LINE = re.compile(r"^(?P<indent> *)(?P<dash>- )?(?P<key>[\w/@ .]+):(?: +(?P<value>.*?))?(?: +# ?(?P<comment>.*))?$")


def main(arguments: list[str]) -> int:
    """Write the file, or with --check say whether it is up to date."""
    file, text = Path(__file__).with_name("configuration.md"), reference()
    if arguments == ["--check"]:
        return 0 if file.is_file() and file.read_text("utf-8") == text else 1
    file.write_text(text, "utf-8")
    return 0


def reference() -> str:
    """The whole page: the verbs' own files first, then group by group."""
    files = sorted(CONF.rglob("*.yaml"), key=lambda f: (len(f.relative_to(CONF).parts) > 1, f.relative_to(CONF).parts))
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(file.parent.relative_to(CONF).as_posix(), []).append(file)
    parts = [INTRO]
    for group, members in groups.items():
        if group != ".":
            choices = ", ".join(f"`{m.stem}`" for m in members)
            parts.append(f"\n## `{group}`: {choices}\n")
        parts += [section(file, "##" if group == "." else "###") for file in members]
    return "".join(parts)


def section(file: Path, level: str) -> str:
    """One file: what its first comment says, what it starts from, and a table of its values."""
    lines = file.read_text("utf-8").splitlines()
    name = file.relative_to(CONF).with_suffix("").as_posix()
    leading = takewhile(lambda line: line.startswith("#"), lines)
    said = [line.lstrip("# ") for line in leading if "@package" not in line]
    rows, bases = [], []
    for key, value, comment in entries(lines):
        if key.startswith("defaults."):
            if value != "_self_":
                bases.append(f"`{value}`")
        else:
            rows.append(f"| `{key}` | {cell(value)} | {comment.replace('|', chr(92) + '|')} |\n")
    text = f"\n{level} `{name}`\n\n" + (" ".join(said) + "\n" if said else "")
    if bases:
        text += ("\n" if said else "") + f"Starts from {', '.join(bases)}.\n"
    if rows:
        text += "\n| key | value | |\n| --- | --- | --- |\n" + "".join(rows)
    return text


def entries(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """(dotted key, value, comment) of every value; items of `defaults` have the key `defaults.N`."""
    path: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        while path and path[-1][0] >= indent + line.lstrip().startswith("- "):
            path.pop()
        inside = ".".join(key for _, key in path)
        if line.lstrip().startswith("- "):
            if inside == "defaults":
                yield f"defaults.{number}", line.strip()[2:].partition(" #")[0].strip(), ""
            continue  # items of other lists belong to the line above
        match = LINE.match(line)
        if match is None:
            continue
        key = f"{inside}.{match['key']}" if inside else match["key"]
        following = next((other for other in lines[number + 1 :] if other.strip()), "")
        deeper = len(following) - len(following.lstrip()) > indent or following.lstrip().startswith("- ")
        if match["value"] or not deeper:
            yield key, match["value"] or "", match["comment"] or ""
        elif match["key"] != "defaults" and (match["comment"] or following.lstrip().startswith("- ")):
            yield key, "…", match["comment"] or ""
        if not match["value"]:
            path.append((indent, match["key"]))


def cell(value: str) -> str:
    """A value in a table."""
    return f"`{value.replace('|', chr(92) + '|')}`" if value else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
