"""README and docs keep their word: every command in them is one the command line takes, and the sequences run."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from string import Template

import numpy as np
import pytest

from af.cli.config import compose, resolve
from af.cli.main import VERBS, main, parser_of
from af.cli.multirun import first_value
from af.data.mixture import roots

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {
    f"docs/{name}.md": (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("data", "evaluation", "live", "speed", "training")
}
CODE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
BLOCKS = CODE.findall(README)
OWN_VIDEOS = re.search(r"^<!-- own videos -->\n```sh\n(.*?)^```", README, re.M | re.S)
ASSIGNMENT = re.compile(r"([A-Z_]+)=(\S+)")
HOST = {"HOST": "machine1", "SLURM_ARRAY_TASK_ID": "1"}  # what the user's own shell knows


def commands(block: str, **variables: str) -> list[list[str]]:
    """The commands of a block, variables filled in; those given here win over the block's own lines."""
    known, found = {**HOST, **variables}, []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(Template(line).substitute(known) if line.lstrip()[:1] != "#" else "", comments=True)
        if len(words) == 1 and (assigned := ASSIGNMENT.fullmatch(words[0])):
            known.setdefault(assigned[1], assigned[2])
        elif words:
            found.append(words)
    return found


ALL = [
    words
    for page in PAGES.values()
    for language, block in CODE.findall(page)
    if language == "sh"
    for words in commands(block)
]
# torchrun ... -m af.cli.main train ... is `af train ...` on every machine
AF = [["af", *w[w.index("af.cli.main") + 1 :]] if w[0] == "torchrun" else w for w in ALL if w[0] in ("af", "torchrun")]


def test_only_known_programs_are_named():
    assert {words[0] for words in ALL} <= {"af", "make", "python", "torchrun", "tensorboard", ".", "pip", "aws"}
    assert len(AF) >= 15
    assert {words[1] for words in AF} <= set(VERBS)
    assert all(importlib.util.find_spec(words[2]) for words in ALL if words[:2] == ["python", "-m"])
    assert {words[1] for words in AF} >= {"ingest", "shards", "train", "encode", "evaluate", "generate"}


def test_make_targets_and_extras_exist():
    makefile = (ROOT / "Makefile").read_text()
    for words in ALL:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words
            assert all(re.search(rf"^{w.partition('=')[0]} \?=", makefile, re.M) for w in words[2:]), words
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"avatar-forcing\[(\w+)\]", README)) <= set(extras)


def parsed(words: list[str]) -> argparse.Namespace:
    """The arguments of `af ...`, as its verb parses them; SystemExit when it does not take them."""
    module = importlib.import_module(f"af.cli.{words[1].replace('-', '_')}")
    parser = parser_of(words[1], module)
    return (parser.parse_args if parser._subparsers else parser.parse_intermixed_args)(words[2:])


@pytest.mark.parametrize("words", AF, ids=lambda words: " ".join(words[:3]))
def test_every_command_is_taken(words, denoiser_folder):
    args = parsed(words)
    if words[1] == "train":  # a model to start from is not there yet
        words = [f"start={denoiser_folder}" if o.startswith("start=") else o for o in args.overrides]
        overrides = [first_value(word) for word in words] if args.several else words
        config = resolve(compose("train", overrides, args.config_dir))
        assert all(str(place).startswith(("data/", "s3://")) for place in roots(config["data"]["root"]))
    if words[1] == "encode":
        resolve(compose("encode", args.overrides, args.config_dir))


def test_words_a_verb_does_not_take_are_noticed():
    with pytest.raises(SystemExit):
        parsed(["af", "evaluate", "--out", "x", "--manifesto", "clips.csv"])


@pytest.mark.parametrize("choice", re.findall(r"DEMO=demo=(\w+)", README))
def test_named_demos_exist(choice):
    resolve(compose("demo", [f"demo={choice}"]))


def test_named_files_exist():
    for page, text in PAGES.items():
        for path in re.findall(r"\]\(((?!https?:)[^)#]+)\)", text):
            assert (ROOT / page).parent.joinpath(path).exists(), (page, path)
    for path in re.findall(r"`(\w+/[\w/]+\.(?:py|ipynb|yaml))`", README):
        assert (ROOT / path).exists(), path
    assert sum(f.stat().st_size for f in (ROOT / "docs").rglob("*") if f.is_file()) < 1_000_000


def test_the_live_session_runs_as_printed(tmp_path, monkeypatch, autoencoder_folder, denoiser_folder):
    from PIL import Image

    from af.data.audio import read_audio
    from af.data.video import read_video
    from af.data.video_writer import write_video

    block = next(block for language, block in CODE.findall(PAGES["docs/live.md"]) if "live_session" in block)
    monkeypatch.chdir(tmp_path)
    for name, folder in (("vae", autoencoder_folder), ("denoiser", denoiser_folder)):
        shutil.copytree(folder, f"runs/demo/{name}/export")
    sizes = ["--train", "1", "--val", "1", "--test", "1", "--seconds", "2", "--size", "128", "--workers", "1"]
    assert main(["synth", "--out", "drawn", *sizes]) == 0
    assert main(["shards", "extract", "drawn/train", "--sample", "0", "--out", "."]) == 0
    # a room around the people, as a camera sees it
    user = [np.pad(frame, ((30, 60), (50, 40), (0, 0)), mode="edge") for frame in read_video(Path("user.mp4"))]
    write_video(Path("user.mp4"), user, read_audio(Path("user.wav")))
    Image.open("avatar.png").convert("RGB").save("portrait.jpg", quality=95)
    Path("avatar.wav").rename("voice.wav")
    names: dict = {}
    exec(block, names)
    assert len(read_video(Path("live.mp4"))) == len(user) == 50
    faults = names["session"].faults
    assert faults == type(faults)()  # a face in every frame, nothing late
    assert names["session"].waiting_ms == 5 * 40


TINY = {
    "vae_clip": [
        "model.image_size=32", "model.latent_dim=16", "model.directions=6", "model.channel_base=128",
        "model.max_channels=16",
    ],
    "denoiser_clip": [
        "model.motion_space.latent_dim=16", "model.motion_space.directions=6", "model.hidden=16", "model.depth=1",
        "model.heads=2", "model.condition_dim=16",
    ],
}  # fmt: skip
TWO_STEPS = ["trainer.max_steps=2", "trainer.val_check_interval=2", "data.batch_size=2", "data.workers=0"]


@pytest.mark.slow
def test_own_videos_from_files_to_a_generated_one(tmp_path, monkeypatch, capsys):
    """The README's sequence as printed, with the manifest it prints, on drawn people filmed to files of these names; only
    sizes and steps are made small.
    """
    from af.data.video import read_video

    monkeypatch.chdir(tmp_path)
    sizes = ["--train", "2", "--val", "1", "--test", "1", "--seconds", "4", "--size", "128", "--workers", "1"]
    assert main(["synth", "--out", "drawn", *sizes]) == 0
    (table,) = (block for language, block in BLOCKS if language == "csv")
    Path("videos").mkdir()
    Path("videos/pairs.csv").write_text(table)
    for sample, row in enumerate(csv.DictReader(table.splitlines())):
        assert main(["shards", "extract", "drawn/train", "--sample", str(sample), "--out", "extracted"]) == 0
        for role, name in (("a", "user"), ("b", "avatar")):
            Path("videos", row[role]).parent.mkdir(exist_ok=True)
            Path(f"extracted/{name}.mp4").rename(Path("videos", row[role]))

    assert OWN_VIDEOS is not None
    monkeypatch.setitem(HOST, "HOST", "")
    done = []
    for words in commands(OWN_VIDEOS[1]):
        if words[1] == "ingest":
            words += ["--size", "32"]
        if words[1] == "train":
            words += [*TINY[words[2].removeprefix("experiment=")], *TWO_STEPS]
        if words[1] == "evaluate":
            words += ["evaluation.steps=2"]
        if words[1] == "generate":  # `af compare` refuses videos with a visible mark
            words += ["--no-mark", "--steps", "2"]
        assert main(words[1:]) == 0, words
        done.append(words[1])
    assert {f.parent.name for f in Path("data/mine").glob("*/index.json")} == {"train", "test"}
    assert "no clips in val" in capsys.readouterr().err
    assert done == ["ingest", "shards", "shards", "train", "encode", "train", "evaluate", "shards", "generate"]
    both = read_video(Path("runs/mine/example/both.mp4"))
    assert len(both) == len(read_video(Path("runs/mine/example/user.mp4"))) >= 50
    # nobody knows here that these videos show drawn people: their faces are for `af compare` and another tracker
    assert "reaction_gain" not in json.loads((tmp_path / "runs/mine/evaluation/metrics.json").read_text())
    going_on = ["runs/mine/evaluation/manifest.csv", "evaluation/tracker=drawn", "evaluation.protocol.block=10"]
    assert main(["compare", *going_on, "--out", "runs/mine/faces"]) == 0
    faces = json.loads((tmp_path / "runs/mine/faces/metrics.json").read_text())
    assert "reaction_gain" in faces
    assert "tracker of drawn faces" in faces["notes"]["faces"][0]

    # `af compare`, with the video just made
    with open("clips.csv", "w", newline="") as file:
        example = "runs/mine/example"
        row = [
            "one",
            f"{example}/user.mp4",
            f"{example}/avatar.mp4",
            f"{example}/generated.mp4",
            f"{example}/avatar.wav",
        ]
        csv.writer(file).writerows([["clip", "user", "true", "generated", "audio"], row])
    (words,) = (w for w in AF if w[1] == "compare" and "evaluation/tracker=drawn" in w)
    assert main(words[1:]) == 0
    assert Path("runs/comparison-synthetic/gallery.html").is_file()
