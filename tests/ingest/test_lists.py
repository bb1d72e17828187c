"""Lists of conversations as people write them: a wrong row costs itself alone, a person is one person however written."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import unicodedata
from pathlib import Path

import pytest

from af.cli import main as cli
from af.data.schema import person_key
from af.data.validate import validate
from af.errors import UserError
from af.ingest.options import IngestOptions
from af.ingest.run import run_ingest
from af.ingest.sources import Source, from_flags, from_manifest
from af.ingest.splits import assign_splits, one_person
from tests.toy_videos import disc_detector, disc_video

OPTIONS = IngestOptions(size=32, detect_every=3)
THIRDS = (0.4, 0.3, 0.3)


def splits_of(sources, fractions=THIRDS, assigned=None):
    same, remarks = one_person(sources)
    placed = assign_splits(sources, split="train", fractions=fractions, assigned=assigned or {}, same=same)
    assert all(objection is None for _, objection in placed)
    return [split for split, _ in placed], remarks


# ------------------------------------------------------------------------------------------------------------- rows


ROWS = {
    "NUL": ("m.csv", b"a,b\nx\0.mp4,y.mp4\n", "a x\\x00.mp4 holds a NUL character"),
    "bytes": ("m.csv", "a,b\nmüller.mp4,y.mp4\n".encode("cp1252"), "a m\\udcfcller.mp4 is not UTF-8"),
    "too many": ("m.csv", b"a,b\nx,y,z\n", "more values than columns \\(z\\)"),
    "too few": ("m.csv", b"a,b\nx\n", "either two videos"),
    "quote inside": ("m.csv", b'a,b\n"x"y,z\n', "'[,]' expected after"),
    "not text": ("m.json", b'[{"a": "x", "b": 3}, {"a": "1", "b": "2"}]', "b must be text, got 3"),
    "split": ("m.json", b'[{"a": "x", "b": "y", "split": "dev"}, {"a": "1", "b": "2"}]', "split 'dev'"),
    "both forms": ("m.json", b'[{"a": "x", "b": "y", "video": "z"}, {"a": "1", "b": "2"}]', "either two videos"),
    "no object": ("m.json", b'[["x", "y"], {"a": "1", "b": "2"}]', "expected an object"),
    "lone surrogate": ("m.json", b'[{"a": "x\\ud800", "b": "y"}, {"a": "1", "b": "2"}]', "a x\\ud800 is not UTF-8"),
    "no JSON": ("m.jsonl", b'{"a": "x"\n', "not JSON"),
    "unknown": ("m.jsonl", b'{"a": "x", "c": "y"}\n', "unknown column c"),
    "a name twice": ("m.jsonl", b'{"a": "x", "a": "z", "b": "y"}\n', "column a is there twice"),
    "a name twice in a list": ("m.json", b'[{"b": "x", "b": "z", "a": "y"}, {"a": "1", "b": "2"}]', "b is there twice"),
    "one person": ("m.jsonl", b'{"a": "x", "b": "y", "participant_a": "p", "participant_b": " P"}\n', "one person"),
    "one file": ("m.jsonl", b'{"a": "x", "b": "../here/x"}\n', "a and b are one file"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_wrong_row_costs_itself_alone(tmp_path, case):
    name, data, expected = ROWS[case]
    good = {"m.csv": b"1,2\n", "m.json": b"", "m.jsonl": b'{"a": "1", "b": "2"}\n'}[name]
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / name).write_bytes(data + good)
    sources, rejected = from_manifest(folder / name)
    assert [Path(s.a).name for s in sources] == ["1"]
    assert len(rejected) == 1
    assert rejected[0].line.startswith(f"{folder / name}, entry 1: ")
    assert expected.replace("\\(", "(").replace("\\)", ")").replace("[,]", ",") in rejected[0].line
    assert rejected[0].line.isprintable()


def test_a_run_reports_the_wrong_rows_and_keeps_the_rest(tmp_path, capsys, monkeypatch):
    import af.ingest.run as module

    monkeypatch.setattr(module, "make_detector", lambda name, model=None: disc_detector)
    for name in ("a.mp4", "b.mp4"):
        disc_video(tmp_path / name, 60)
    lines = [
        "a,b",
        "a.mp4,b.mp4",
        "x\0,b.mp4",
        "a.mp4,a.mp4",
        "~nobody.mp4,b.mp4",
        "./a.mp4,b.mp4",
        f"{'x' * 300},b.mp4",
    ]
    (tmp_path / "m.csv").write_text("\n".join([*lines, "lone\u2028sep.mp4,b.mp4"]))
    out = tmp_path / "out"
    assert cli.main(["ingest", "--manifest", str(tmp_path / "m.csv"), "--out", str(out), "--size", "32"]) == 0
    said = capsys.readouterr().err
    assert said.count("dropped: ") == 6
    report = json.loads((out / "ingest_report.json").read_text())
    assert (report["conversations"], report["clips"]) == (7, 1)
    assert report["failed"] == {"bad_row": 1, "same_person": 1, "listed_twice": 1, "missing": 2, "unreadable": 1}
    assert validate(out).ok


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_lists_as_spreadsheets_save_them(tmp_path, encoding, delimiter):
    rows = ["a, B ,participant_a", '"x, 1; é.mp4", y.mp4 ,Ann Lee', ",,", ""]
    text = "\r\n".join(
        [rows[0].replace(",", delimiter), f'"x, 1; é.mp4"{delimiter} y.mp4 {delimiter}Ann Lee', rows[2], ""]
    )
    name = "m.txt" if encoding == "utf-16" else "m.csv"
    (tmp_path / name).write_bytes(text.replace(",,", delimiter * 2).encode(encoding))
    (source,), rejected = from_manifest(tmp_path / name)
    assert rejected == []
    assert (source.a, source.b) == (str(tmp_path / "x, 1; é.mp4"), str(tmp_path / "y.mp4"))
    assert source.participant_a == "Ann Lee"


def test_excels_own_mark_of_the_separator(tmp_path):
    (tmp_path / "m.csv").write_text("sep=;\na;b\nx, 1;y\n")
    (source,), _ = from_manifest(tmp_path / "m.csv")
    assert (Path(source.a).name, Path(source.b).name) == ("x, 1", "y")


def test_a_folder_is_no_list(tmp_path):
    (tmp_path / "m.csv").mkdir()
    with pytest.raises(UserError, match=r"m\.csv: is a folder, not a manifest"):
        from_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize("empty", ["\n\r\n", ";;\n", "sep=;\n\n; \n"])
def test_empty_rows_above_the_header_are_left_out(tmp_path, empty):
    (tmp_path / "m.csv").write_text(f"{empty}a;b\n\nx, 1;y\n")
    (source,), rejected = from_manifest(tmp_path / "m.csv")
    assert (Path(source.a).name, Path(source.b).name, rejected) == ("x, 1", "y", [])


def test_paths_mean_the_file_that_is_there(tmp_path, monkeypatch):
    """Home folders, accents as another system writes them, backslashes, spaces around; and odd names as they are."""
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [unicodedata.normalize("NFD", "é.mp4"), "in/x.mp4", "u\u2028v.mp4", "~nobody.mp4", " spaced .mp4"]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / name).touch()
    written = ["é.mp4", "in\\x.mp4", " u\u2028v.mp4", "~nobody.mp4", " spaced .mp4", "~/in/x.mp4"]
    (tmp_path / "m.json").write_text(json.dumps([{"video": w} for w in written]))
    sources, rejected = from_manifest(tmp_path / "m.json")
    assert [os.path.relpath(s.video, tmp_path) for s in sources] == names
    assert [r.reason for r in rejected] == ["listed_twice"]  # the last is the second
    assert all(s.name.isprintable() for s in sources)


def test_names_that_are_no_text_on_the_command_line_cost_themselves_alone():
    sources, rejected = from_flags([["x\udcff.mp4", "y"], ["1", "2"]], [], [], [])
    assert len(sources) == 1
    assert rejected[0].line.isprintable()
    assert "is not UTF-8" in rejected[0].line


# ----------------------------------------------------------------------------------------------------------- people


@pytest.mark.parametrize("other", ["ann ", " ann", "Ann", "ann\u00a0", "a\u200bnn", "\uff41nn", "\ufeffann"], ids=ascii)
def test_ways_of_writing_one_person(other):
    assert person_key(other) == person_key("ann")
    sources = [
        Source(a=f"/{n}a", b=f"/{n}b", participant_a=p, participant_b=f"friend {n}")
        for n, p in enumerate(["ann", other] * 4)
    ]
    splits, _ = splits_of(sources)
    assert len(set(splits)) == 1


def test_accents_of_two_systems_are_one_person():
    one, other = (unicodedata.normalize(form, "renée") for form in ("NFC", "NFD"))
    assert one != other
    assert Source(a="/1", b="/2", participant_a=other).participant_a == one


def test_one_file_under_several_names_is_one_person(tmp_path):
    """Another spelling of the path, links, a copy: never in two splits, and said where the ids differ."""
    (tmp_path / "ann.mp4").write_bytes(b"a film" * 400_000)
    (tmp_path / "soft.mp4").symlink_to("ann.mp4")
    os.link(tmp_path / "ann.mp4", tmp_path / "hard.mp4")
    shutil.copy(tmp_path / "ann.mp4", tmp_path / "copy.mp4")
    names = ["ann.mp4", "./x/../ann.mp4", "soft.mp4", "hard.mp4", "copy.mp4"]
    for n in range(len(names)):
        (tmp_path / f"{n}.mp4").write_bytes(b"another" + bytes([n]) * 2_399_993)  # as long as ann's
    sources = [Source(a=str(tmp_path / name), b=str(tmp_path / f"{n}.mp4")) for n, name in enumerate(names)]
    assert len({s.participants[0] for s in sources[:3]}) == 1
    splits, remarks = splits_of(sources)
    assert len(set(splits)) == 1
    assert len(remarks) == 2
    assert all("seen in one file" in line for line in remarks)
    others = [Source(a=str(tmp_path / f"{n}.mp4"), b=str(tmp_path / f"b{n}.mp4")) for n in range(len(names))]
    assert splits_of(others)[1] == []
    for name in names[1:]:
        _, rejected = from_flags([[str(tmp_path / "ann.mp4"), str(tmp_path / name)]], [], [], [])
        assert rejected[0].reason == "same_person", name


def test_one_file_with_two_ids_is_said_and_stays_together(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"x")
    sources = [
        Source(a=str(tmp_path / "x.mp4"), b=f"/{n}", participant_a=p, participant_b=f"q{n}")
        for n, p in enumerate(["ann", "ben", "cy", "di"])
    ]
    splits, remarks = splits_of(sources)
    assert len(set(splits)) == 1
    assert "'ann' and 'ben' are seen in one file" in remarks[0]


def test_validate_notices_one_person_in_two_splits_and_in_one_sample(tmp_path):
    """Another spelling of the id, the very same video under another id, one video for both."""
    for name in "abcd":
        disc_video(tmp_path / f"{name}.mp4", 55, seed=ord(name))

    def made(out: str, rows) -> Path:
        for a, b, split, *ids in rows:
            source = Source(a=str(tmp_path / f"{a}.mp4"), b=str(tmp_path / f"{b}.mp4"), participant_a=ids[0])
            run_ingest([source], tmp_path / out, OPTIONS, split=split, detector=disc_detector)
        return tmp_path / out

    def counts(root: Path) -> dict[str, int]:
        return validate(root, deep=False).counts

    assert counts(made("fine", [("a", "b", "train", "ann"), ("c", "d", "test", "cy")])) == {}
    spelt = made("spelt", [("a", "b", "train", "ann")])
    shutil.copytree(made("spelt2", [("c", "d", "test", "Ann ")]) / "test", spelt / "test")
    assert counts(spelt) == {"identity_overlap": 1}
    again = made("again", [("a", "b", "train", "ann")])
    shutil.copytree(made("again2", [("a", "d", "test", "another")]) / "test", again / "test")
    assert counts(again) == {"identity_overlap": 1}
    (tar,) = (tmp_path / "fine" / "test").glob("*.tar")
    doubled = io.BytesIO()
    with tarfile.open(tar) as source, tarfile.open(fileobj=doubled, mode="w") as target:
        content = {m.name: source.extractfile(m).read() for m in source}
        for name in content:
            data = content[name.replace(".b.mp4", ".a.mp4")]
            if name.endswith(".json"):
                data = data.replace(json.dumps(json.loads(data)["participants"][1]).encode(), b'"CY"')
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    tar.write_bytes(doubled.getvalue())
    cli.main(["shards", "index", str(tmp_path / "fine")])
    assert counts(tmp_path / "fine") == {"one_person": 2}


# ----------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("count", range(1, 9))
def test_few_conversations_leave_a_test_split_where_that_can_be(tmp_path, count):
    """One group: train. Two: train and test. From three on every split. The same when some are done already."""
    for n in range(count):
        (tmp_path / f"a{n}").touch()
        (tmp_path / f"b{n}").touch()
    sources = [Source(a=str(tmp_path / f"a{n}"), b=str(tmp_path / f"b{n}")) for n in range(count)]
    splits, _ = splits_of(sources, (0.8, 0.1, 0.1))
    found = set(splits)
    assert found >= ({"train", "test"} if count > 1 else set())
    assert len(found) == min(count, 3)
    for done in range(count):  # other shares of the job ended some
        known = {p: w for s, w in list(zip(sources, splits, strict=True))[:done] for p in s.participants}
        assert splits_of(sources, (0.8, 0.1, 0.1), known)[0] == splits


def test_what_is_missing_fills_no_split(tmp_path):
    for name in "abcdef":
        (tmp_path / name).touch()
    there = [Source(a=str(tmp_path / a), b=str(tmp_path / b)) for a, b in ("ab", "cd", "ef")]
    missing = [Source(a=f"/nowhere/{n}", b=f"/nowhere/{n}b") for n in range(20)]
    assert set(splits_of(missing + there)[0][20:]) == {"train", "val", "test"}


def test_empty_splits_are_said_with_why_and_what_to_do(tmp_path):
    for name in "abcd":
        disc_video(tmp_path / f"{name}.mp4", 55)

    def notes(out: str, pairs, **how):
        sources = [Source(a=str(tmp_path / f"{a}.mp4"), b=str(tmp_path / f"{b}.mp4")) for a, b in pairs]
        return run_ingest(sources, tmp_path / out, OPTIONS, detector=disc_detector, **how).to_json()["notes"]

    (one,) = notes("one", ["ab"], fractions=(0.8, 0.1, 0.1))
    assert "no clips in val" in one
    assert "no clips in test (for `af evaluate`" in one
    assert "1 conversation of 1 group" in one
    assert "add conversations of other people" in one
    (two,) = notes("two", ["ab", "cd"], fractions=(0.8, 0.1, 0.1))
    assert "no clips in val" in two
    assert "no clips in test" not in two
    assert notes("asked", ["ab", "cd"], fractions=(0.5, 0.0, 0.5)) == []
    (all_train,) = notes("all", ["ab"])
    assert "--split-by-identity" in all_train
    assert notes("one test", ["ab"], split="test") == []


# ---------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "100000"),
        ("--size", "1"),
        ("--max-seconds", "inf"),
        ("--margin", "nan"),
        ("--offset", "nan"),
        ("--offset", "x"),
        ("--offset-limit", "-1"),
        ("--face", "middle"),
    ],
)
def test_options_out_of_range_are_one_line_before_any_work(tmp_path, capsys, option, value):
    with pytest.raises(SystemExit):
        cli.main(["ingest", "--pair", "a", "b", "--out", str(tmp_path / "out"), option, value])
    (line,) = capsys.readouterr().err.splitlines()
    assert option in line
    assert not (tmp_path / "out").exists()
