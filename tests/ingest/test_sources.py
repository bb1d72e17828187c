"""Manifests and flags name the same sources; what is no list is refused."""

from __future__ import annotations

import json

import pytest

from af.errors import UserError
from af.ingest.sources import COLUMNS, Source, from_flags, from_manifest


def test_manifests_and_flags_say_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "a": "x, 1.mp4",
            "b": "y = 2.mp4",
            "audio_a": "silence",
            "audio_b": "v.wav",
            "participant_a": "p",
            "participant_b": "q",
        },
        {"video": "both.mp4"},
    ]
    (tmp_path / "m.json").write_text(json.dumps(rows))
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    (tmp_path / "m.csv").write_text(
        '\ufeffa,b,audio_a,audio_b,participant_a,participant_b,video\n"x, 1.mp4",y = 2.mp4,silence,v.wav,p,q,\n,,,,,,both.mp4\n',
        "utf-8",
    )
    found = [from_manifest(tmp_path / name) for name in ("m.json", "m.jsonl", "m.csv")]
    assert found[0] == found[1] == found[2]
    assert all(rejected == [] for _, rejected in found)
    found = [sources for sources, _ in found]
    assert found[0][0].a == str(tmp_path / "x, 1.mp4")
    assert found[0][0].audio_a == "silence"
    assert from_flags([["x, 1.mp4", "y = 2.mp4"]], [], [["silence", "v.wav"]], [["p", "q"]]) == (found[0][:1], [])
    assert from_flags([], ["both.mp4"], [["-", "-"]], []) == (found[0][1:], [])
    assert len({s.id for s in found[0]}) == 2
    assert set(COLUMNS) == set(Source.__dataclass_fields__) - {"stereo"}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("m.csv", "a,b,size\nx,y,3\n", "unknown column size"),
        ("m.csv", "a,b,a\nx,y,z\n", "column a is there twice"),
        ("m.csv", "a,b\n", "lists nothing"),
        ("m.csv", "", "lists nothing"),
        ("m.csv", 'a,b\n"x,y\nz,w\n', "a quote that opens before line 3 never closes"),
        ("m.json", '{"a": 1}', "expected a list"),
        ("m.json", "[", "not a readable manifest"),
        ("m.json", "[" * 100_000, "not a readable manifest"),
        ("m.xlsx", "x", "save a spreadsheet as CSV"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        from_manifest(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_flags_must_match_in_number():
    with pytest.raises(UserError, match="--audio is given 1 times for 2"):
        from_flags([["a", "b"]], ["c"], [["-", "-"]], [])
