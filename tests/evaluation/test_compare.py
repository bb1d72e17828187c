"""`af compare`: any videos or arrays, bad inputs named one by one, resuming, the files it leaves."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from af.cli.main import main
from af.data.video_writer import write_video
from af.errors import UserError
from af.evaluation.manifest import read_manifest
from af.evaluation.measured import fill_gaps
from af.evaluation.read_videos import Reader, read_parameters

FRAMES, SIZE = 60, 48  # the shortest that every parameter metric but the reaction gain accepts


def write_manifest(path: Path, rows: list[dict]) -> Path:
    columns = list(dict.fromkeys(k for row in rows for k in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Arrays of 3 clips (with sound), and short videos with names that hold spaces and commas."""
    root = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)

    def motion() -> np.ndarray:
        return np.stack([np.convolve(rng.normal(size=FRAMES + 4), np.ones(5) / 5, "valid") for _ in range(6)], 1)

    for i in range(3):
        user, true = motion(), motion()
        for name, values in (("user", user), ("true", true), ("generated", 0.6 * true + 0.4 * motion())):
            np.save(root / f"{name}{i}.npy", values)
    tone = (0.3 * rng.normal(size=FRAMES * 640) * np.repeat(np.abs(motion()[:, 0]), 640)).clip(-1, 1)
    import soundfile

    soundfile.write(root / "voice.wav", tone, 16_000)
    ramp = np.linspace(0, 150, SIZE)[None, None, :, None]
    for name, speed in (("user, one", 1), ("true clip", 2), ("generated=1", 3)):
        time = np.arange(FRAMES)[:, None, None, None]
        frames = np.broadcast_to(ramp + 40 + 30 * np.sin(time * speed / 9), (FRAMES, SIZE, SIZE, 3))
        write_video(root / f"{name}.mp4", frames.astype(np.uint8), tone.astype(np.float32))
    return root


def array_rows(folder: Path) -> list[dict]:
    return [
        {
            "clip": f"c{i}",
            "user": f"user{i}.npy",
            "true": f"true{i}.npy",
            "generated": f"generated{i}.npy",
            "audio": "voice.wav",
            "user_audio": "voice.wav",
        }
        for i in range(3)
    ]


LAYOUT = [
    "evaluation.expression=4",
    "evaluation.names=[mouth_open,smile,brow,blink,pitch,roll]",
    "evaluation.tracker_of_arrays=test/1",
]


def test_arrays_give_the_table_and_its_files(folder, tmp_path, capsys):
    manifest = write_manifest(folder / "arrays.csv", array_rows(folder))
    out = tmp_path / "out"
    assert main(["compare", str(manifest), "--out", str(out), "evaluation.protocol.block=10", *LAYOUT]) == 0
    numbers = json.loads((out / "metrics.json").read_text())
    for tag in (
        "rpcc/exp",
        "tlcc/pose/peak",
        "fd/exp",
        "var_ratio/smile",
        "lip/corr",
        "mouth/corr",
        "border_ratio/exp",
    ):
        assert np.isfinite(numbers[tag]), tag
        assert "test/1" in numbers["protocol"][tag]
    assert numbers["mouth/corr"] > numbers["mouth/corr/null"]
    assert "arrays, no videos" in numbers["not_computed"]["fid_inception"]
    assert "phrase_ends" in numbers["not_computed"]["react"]
    text = (out / "metrics.md").read_text()
    assert "ground truth" in text
    assert "Not computed" in text
    assert {p.name for p in (out / "plots").iterdir()} >= {"tlcc_exp.png", "mouth_over_time.png", "block_borders.png"}
    logged = EventAccumulator(str(out / "tensorboard")).Reload().Tags()
    assert {"lip/corr", "lip/corr/true"} <= set(logged["scalars"])
    assert set(logged["images"]) == {f"evaluation/{p.stem}" for p in (out / "plots").iterdir()}
    clips = json.loads((out / "clips.json").read_text())
    assert set(clips) == {"c0", "c1", "c2"}
    assert "fd/exp" in clips["c0"]
    assert "c1" in (out / "gallery.html").read_text()


@pytest.mark.slow
def test_videos_without_a_tracker_and_a_stand_in_network(folder, tmp_path, capsys):
    row = {"clip": "one", "user": "user, one.mp4", "true": "true clip.mp4", "generated": "generated=1.mp4"}
    rows = [row, row | {"clip": "copy", "generated": "true clip.mp4"}]
    manifest = write_manifest(folder / "videos.csv", rows)
    network = torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten()))
    torch.jit.save(network, tmp_path / "net.pt")
    out = tmp_path / "out"
    pool = "evaluation.networks.torchscript"
    options = ["evaluation/networks=[thumbnail,torchscript]", f"{pool}.path={tmp_path / 'net.pt'}", f"{pool}.name=pool"]
    options += [f"{pool}.size=32", "evaluation.protocol.block=10"]
    assert main(["compare", str(manifest), "--out", str(out), *options]) == 0
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["ssim"] < 1
    assert any(re.match(r"fd_img/pool-[0-9a-f]{8}$", tag) for tag in numbers)
    assert numbers["fd_img/thumbnail8-1"] > 0
    assert not any(tag.startswith(("fid", "fvd", "lse", "csim")) for tag in numbers)
    assert "mediapipe" in numbers["not_computed"]["rpcc"]
    assert "syncnet_v2.model" in numbers["not_computed"]["lse_d"]
    page = (out / "gallery.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert [set(c["videos"]) for c in data] == [{"user", "generated", "true"}] * 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)  # asks no server for anything


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rows_of_networks_from_stand_in_files(folder, tmp_path):
    """SyncNet, I3D and an embedder by path and hash, beside arrays, by the one setting of the benchmark: their rows, with
    null and truth, named after their files.
    """
    from af.evaluation.syncnet import SyncNet
    from af.files import sha256_of
    from tests.evaluation.test_extractors import Detector

    rng = np.random.default_rng(0)
    for name in ("short user", "short true", "short own"):
        frames = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        write_video(tmp_path / f"{name}.mp4", frames, rng.normal(size=20 * 640).astype(np.float32) * 0.1)
    torch.save(SyncNet().state_dict(), tmp_path / "syncnet.model")
    torch.jit.save(torch.jit.script(Detector()), tmp_path / "i3d.pt")
    torch.jit.save(
        torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten())), tmp_path / "id.pt"
    )
    row = {"clip": "a", "user": "short user.mp4", "true": "short true.mp4", "generated": "short own.mp4"}
    for side in ("user", "true", "generated"):
        row[f"{side}_face"] = f"{side}.npy"
        np.save(tmp_path / f"{side}.npy", rng.normal(size=(20, 56)))
    manifest = write_manifest(tmp_path / "m.csv", [row, row | {"clip": "b"}])
    hashes = {name: sha256_of(tmp_path / name) for name in ("syncnet.model", "i3d.pt", "id.pt")}
    options = [
        "evaluation=si184",
        "evaluation.tracker=null",
        f"evaluation.syncnet.path={tmp_path / 'syncnet.model'}",
        f"evaluation.syncnet.sha256={hashes['syncnet.model']}",
        "evaluation/networks=[i3d]",
        f"evaluation.networks.i3d.path={tmp_path / 'i3d.pt'}",
        f"evaluation.networks.i3d.sha256={hashes['i3d.pt']}",
        "evaluation.networks.i3d.stride=2",
        f"evaluation.embedder.path={tmp_path / 'id.pt'}",
        "evaluation.gallery=false",
    ]
    assert main(["compare", str(manifest), "--out", str(tmp_path / "out"), *options]) == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for tag in ("lse_d", "lse_c"):
        assert all(np.isfinite(numbers[f"{tag}{side}"]) for side in ("", "/true", "/null"))
    assert -15 <= numbers["lse_offset"] <= 15
    assert numbers["fvd_i3d/16f-s2/n6"] >= 0
    embedder = f"csim/arcface-{hashes['id.pt'][:8]}/vs_source"
    assert numbers[f"{embedder}/true"] > numbers[embedder]
    for tag in ("rpcc/exp/clip", "rpcc/pose/clip", "pfd/exp", "pfd/pose", "var/exp", "var/pose"):
        assert np.isfinite(numbers[tag]), tag
        assert "emoca/2" in numbers["protocol"][tag]
    assert not {"fvd_i3d", "csim", "lse_d", "lse_c"} & set(numbers["not_computed"])


def test_the_benchmark_asks_for_every_weight(folder, tmp_path, capsys):
    manifest, options = write_manifest(folder / "arrays.csv", array_rows(folder)), ["evaluation=si184"]
    for key in ("networks.inception.path", "networks.i3d.path", "embedder.path", "syncnet.path"):
        assert main(["compare", str(manifest), "--out", str(tmp_path / "out"), *options]) != 0
        assert f"evaluation.{key} is not set" in capsys.readouterr().err
        options.append(f"evaluation.{key}=FILE")


BAD = {
    "missing": (lambda f, p: None, "no such file"),
    "text": (lambda f, p: p.write_text("hello"), "not readable"),
    "empty": (lambda f, p: p.write_bytes(b""), "not readable"),
    "one frame": (lambda f, p: np.save(p, np.zeros((1, 6))), "lengths differ"),
    "longer": (lambda f, p: np.save(p, np.zeros((FRAMES + 9, 6))), "lengths differ by 9 frames"),
    "nan": (lambda f, p: np.save(p, np.full((FRAMES, 6), np.nan)), "NaN or infinite values in 60 frames"),
    "layout": (lambda f, p: np.save(p, np.zeros((FRAMES, 5))), "5 columns"),
    "flat": (lambda f, p: np.save(p, np.zeros(FRAMES)), "frames x parameters"),
    "pickle": (lambda f, p: np.save(p, np.array([{}]), allow_pickle=True), "not readable"),
}


def test_every_bad_input_is_named_and_loses_no_other_clip(folder, tmp_path, capsys):
    rows = array_rows(folder)
    for name, (make, _) in BAD.items():
        make(folder, folder / f"bad {name}.npy")
        rows.append(rows[0] | {"clip": f"bad {name}", "generated": f"bad {name}.npy"})
    (folder / "broken.mp4").write_bytes(b"\0" * 5000)
    rows.append(rows[0] | {"clip": "bad video", "generated": "broken.mp4", "generated_face": ""})
    np.save(folder / "still.npy", np.full((FRAMES, 6), 0.5))
    rows.append(rows[0] | {"clip": "constant", "generated": "still.npy"})
    np.save(folder / "short.npy", np.zeros((1, 6)))
    rows.append(rows[0] | {"clip": "single"} | dict.fromkeys(("user", "true", "generated"), "short.npy"))
    manifest = write_manifest(folder / "bad.csv", rows)
    out = tmp_path / "out"
    assert main(["compare", str(manifest), "--out", str(out), "evaluation.gallery=false", *LAYOUT]) == 0
    numbers = json.loads((out / "metrics.json").read_text())
    for name, (_, words) in BAD.items():
        message = numbers["left_out"][f"bad {name}"]
        assert words in message
        assert f"bad {name}" in message
    assert "only 1 frame" in numbers["left_out"]["single"]
    assert "still.npy: no parameter ever changes" in numbers["notes"]["constant"][0]
    assert "broken.mp4" in numbers["left_out"]["bad video"]
    assert numbers["fd/exp/n"] == 4  # three good ones and the constant one
    assert set(json.loads((out / "clips.json").read_text())) >= {"c0", "c1", "c2", "constant"}


def test_every_bad_video_or_sound_is_named_and_loses_no_other_clip(folder, tmp_path, capsys):
    row = {"clip": "good", "user": "user, one.mp4", "true": "true clip.mp4", "generated": "generated=1.mp4"}
    row["audio"] = "left.wav"
    soundfile.write(folder / "left.wav", np.outer(np.sin(np.arange(640 * FRAMES) / 9), [0.3, 0]), 16000)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    frames = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    for name, part in (("one frame", frames[:1]), ("long", np.concatenate([frames, frames[:9]]))):
        write_video(folder / f"{name}.mp4", part)
    whole = (folder / "true clip.mp4").read_bytes()
    for name, content in (
        ("cut", whole[: len(whole) // 3]),
        ("zeros", b"\0" * 5000),
        ("words", b"hello"),
        ("empty", b""),
    ):
        (folder / f"{name}.mp4").write_bytes(content)
    (folder / "words.wav").write_text("hello")
    bad = {
        "generated": {"nowhere.mp4": "nowhere.mp4", "one frame.mp4": "lengths differ", "long.mp4": "differ by 9 frames",
                      "empty.mp4": "the file is empty", "loop.mp4": "symbolic links", "n" * 300 + ".mp4": "cannot be read",
                      **dict.fromkeys(("cut.mp4", "zeros.mp4", "words.mp4"), "cut off")},
        "true": {"zeros.mp4": "cut off", "nowhere.mp4": "nowhere.mp4"},
        "user": {"zeros.mp4": "cut off", "nowhere.mp4": "nowhere.mp4"},
        "audio": {"words.wav": "cut off", "nowhere.wav": "nowhere.wav"},
        "source": {"words.mp4": "not readable as an image"},
    }  # fmt: skip
    expected = {f"{side} {file}": words for side, files in bad.items() for file, words in files.items()}
    rows = [row] + [row | {"clip": f"{side} {file}", side: file} for side, files in bad.items() for file in files]
    torch.jit.save(
        torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten())), tmp_path / "id.pt"
    )
    command = ["compare", str(write_manifest(folder / "bad videos.csv", rows))]
    options = ["--out", str(tmp_path / "out"), "evaluation/embedder=torchscript"]
    options += [f"evaluation.embedder.path={tmp_path / 'id.pt'}", "evaluation.embedder.name=stand-in"]
    assert main([*command, *options]) == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(numbers["left_out"]) == set(expected)
    for name, words in expected.items():
        assert name.split(" ", 1)[1] in numbers["left_out"][name]
        assert words in numbers["left_out"][name], numbers["left_out"][name]
    assert numbers["ssim/n"] == 1
    assert set(json.loads((tmp_path / "out" / "clips.json").read_text())) == {"good"}
    printed = capsys.readouterr().out.replace("\n", "")
    assert all(f"left out {name}:" in printed for name in expected)
    assert "left.wav: audio in left of 2 channels" in printed


def test_a_stopped_evaluation_goes_on_and_a_changed_file_is_measured_again(folder, tmp_path, monkeypatch):
    manifest = write_manifest(folder / "again.csv", array_rows(folder))
    command = ["compare", str(manifest), "--out", str(tmp_path / "out"), "evaluation.gallery=false", *LAYOUT]
    measured: list[str] = []
    original = Reader._measure

    def counted(self, clip, *described):
        if clip.clip == "c2" and len(measured) == 2:
            measured.append("stopped")
            raise KeyboardInterrupt
        measured.append(clip.clip)
        return original(self, clip, *described)

    monkeypatch.setattr(Reader, "_measure", counted)
    assert main(command) == 130
    assert main(command) == 0
    assert measured == ["c0", "c1", "stopped", "c2"]
    first = (tmp_path / "out" / "metrics.json").read_text()
    np.save(folder / "generated1.npy", np.load(folder / "generated1.npy") * 0.5)
    assert main(command) == 0
    assert measured[4:] == ["c1"]
    assert (tmp_path / "out" / "metrics.json").read_text() != first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lists nothing"),
        ("clip,user,true\na,b,c\n", "entry 1: column generated is missing"),
        ("clip,user,true,generated,sound\na,b,c,d,e\n", "unknown column sound; allowed: clip"),
        ("clip,user,true,generated\na,b,c,d\na,b,c,d\n", "'a' appears twice"),
        ("clip;user;true;generated\na;b\0;c;d\n", "entry 1: user b\\x00 holds a NUL"),
        ("clip,user,true,generated,phrase_ends\na,b,c,d,1 x\n", "phrase_ends must be frame numbers"),
    ],
)
def test_a_wrong_manifest_names_row_and_column(tmp_path, text, words):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        read_manifest(path)
    with pytest.raises(UserError, match="no such manifest"):
        read_manifest(tmp_path / "other.csv")


def test_json_and_csv_manifests_say_the_same(tmp_path):
    row = {
        "clip": "a, b",
        "user": "u.mp4",
        "true": "t.mp4",
        "generated": "g.npy",
        "identity": "x",
        "phrase_ends": "3 9",
    }
    write_manifest(tmp_path / "m.csv", [row])
    (tmp_path / "m.json").write_text(json.dumps({"clips": [row | {"phrase_ends": [3, 9]}]}))
    assert read_manifest(tmp_path / "m.csv") == read_manifest(tmp_path / "m.json")
    clip = read_manifest(tmp_path / "m.json")[0]
    assert clip.phrase_ends == (3, 9)
    assert clip.face_file("generated") == (tmp_path / "g.npy").resolve()
    assert clip.video_file("generated") is None


def test_parameter_files_of_every_kind(tmp_path):
    values = np.arange(12.0).reshape(4, 3)
    np.savez(tmp_path / "a.npz", face=values, names=np.array(["x", "y", "z"]))
    np.savetxt(tmp_path / "b.csv", values, delimiter=",", header="x,y,z", comments="")
    np.savetxt(tmp_path / "c.csv", values, delimiter=",")
    for name, names in (("a.npz", ("x", "y", "z")), ("b.csv", ("x", "y", "z")), ("c.csv", None)):
        array, found = read_parameters(tmp_path / name)
        assert np.array_equal(array, values)
        assert found == names


def test_short_gaps_of_a_tracker_are_filled_and_long_ones_refused():
    values = np.arange(40.0)[:, None] * [1, 2]
    gap = values.copy()
    gap[5:9] = np.nan
    filled, note = fill_gaps(gap, Path("x.mp4"))
    assert np.allclose(filled, values)
    assert "4 frames without a face" in note
    gap[5:20] = np.nan
    with pytest.raises(UserError, match=r"x\.mp4: no face was found in 15 of 40 frames, 15 in a row"):
        fill_gaps(gap, Path("x.mp4"))


def test_what_is_missing_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AF_MODELS", raising=False)
    assert main(["evaluate", "--out", str(tmp_path)]) == 1
    assert "--data, --denoiser or --autoencoder is missing" in capsys.readouterr().err
    both = ["--autoencoder", "a", "--linear-probe", "l", "--denoiser", "d", "--data", "x"]
    assert main(["evaluate", "--out", str(tmp_path), *both]) == 1
    assert "exclude each other" in capsys.readouterr().err
    assert main(["compare", "m.csv", "--out", str(tmp_path), "evaluation/tracker=mediapipe"]) == 1
    assert "af fetch face-landmarker" in capsys.readouterr().err
