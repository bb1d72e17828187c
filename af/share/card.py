"""Model cards, made of what runs recorded: recipe, data with licences, numbers of an evaluation of these very weights."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from af.clock import FPS, frames_to_seconds
from af.data.provenance import non_commercial, sources_of
from af.data.schema import UNKNOWN
from af.errors import UserError
from af.evaluation.table import HEADER, markdown, number_text, worse_than_null
from af.files import read_json, write_text
from af.models.artifact import WEIGHTS, Artifact, load_model, shapes_of
from af.pipeline.sampling import read_sampling
from af.share.folder import AUTOENCODER, CARD, DENOISER, public, read_manifest, write_folder

#: Licences by the ids of the Hugging Face hub; others are named beside `other`.
HUB_LICENCES: Final = frozenset(
    {
        "apache-2.0",
        "mit",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "openrail",
        UNKNOWN,
    }
)
_ALSO: Final = ("psnr", "ssim", "mouth/lag", "var_ratio/smile", "var_ratio/blink", "speed_ratio/mouth_open")
_RUNNING: Final = re.compile(r"(latency|speed/rtf)(/(mean_ms|worst_ms|decoding|motion))?")

_ABSENT: Final = object()

_TEXT: Final = """
# {name}

A head avatar that talks and listens: from a portrait, its own voice, and the user's voice and face, it generates video of
{size} x {size} pixels at {fps} frames per second, block by block ({block} ms), with the motion autoencoder and the
causal denoiser of [Avatar Forcing](https://arxiv.org/abs/2601.00664). {drawn}

## Use

```python
from af import Avatar

avatar = Avatar.from_pretrained("OWNER/NAME")  # or a folder
avatar.generate("portrait.jpg", "avatar.mp4", avatar_audio="voice.wav", user_video="user.mp4")
```

Sampled, unless you say otherwise, with {sampling}.

## What is inside

{parts}
Nothing in this folder is executed or unpickled. `avatar.json` has size and SHA-256 of every file.

## How it was trained

{recipe}
## Data

{data}
{terms}

## Numbers

{numbers}
## Intended use

Research on conversation between people and avatars, and avatars of people who have agreed to it. {use}

## Limits

{limits}
## Misuse

Do not make a person appear to say or do what they did not without their consent; do not deceive, impersonate, harass, or
pass identity checks with it. Portraits and voices are personal data: ask before you use them. Moods and intentions
cannot be read from what the avatar answers.

## Disclosure

Videos say that they are generated: a small mark in every frame (`mark=False` leaves it out, for research), a note in
the metadata and IPTC's `trainedAlgorithmicMedia` in XMP. Tell the people who talk with the avatar what it is.
"""


def write_with_card(
    out: Path,
    autoencoder: str | Path,
    denoiser: str | Path,
    *,
    sampling: Mapping[str, Any] | None = None,
    licence: str | None = None,
    evaluation: Path | None = None,
    name: str | None = None,
) -> None:
    """Write a hub folder of two models (a model folder, run or checkpoint each), and its card; `sampling` None: as in the
    evaluation, else the usual one.

    `licence` is that of the weights (None: what the data demand, else unknown), `evaluation` a folder of `af evaluate`
    (None: the card says that there are no numbers). Raises UserError, before anything is written, when that evaluated
    other weights or was changed, and for a licence that allows commercial use of what learned from non-commercial data.
    """
    images, motion = load_model(autoencoder), load_model(denoiser)
    licence = allowed_licence(licence, sources_of(images.info, motion.info))
    printed = None if evaluation is None else Printed.read(evaluation, images, motion)
    if sampling is None and printed is not None:
        sampling = printed.sampling
    images, motion = write_folder(out, autoencoder, denoiser, sampling)
    _write_card(out, images, motion, licence, printed, name)


def _write_card(
    folder: Path, images: Artifact, motion: Artifact, licence: str, printed: Printed | None, name: str | None
) -> None:
    from huggingface_hub import ModelCardData

    sources = sources_of(images.info, motion.info)
    on_hub = licence.lower() in HUB_LICENCES
    about = ModelCardData(
        license=licence.lower() if on_hub else "other",
        license_name=None if on_hub else re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-"),
        library_name="avatar-forcing",
        tags=["talking-head", "avatar", "conversation", "diffusion-forcing"],
    )
    drawn = all(source["dataset"] == "synthetic" for source in sources)
    model: Any = motion.model
    block = frames_to_seconds(model.layout.block_frames) * 1000
    text = _TEXT.format(
        name=name or folder.resolve().name,
        size=images.model.image_size,
        fps=FPS,
        block=f"{block:g}",
        drawn="It knows drawn people alone, so photographs do not work." if drawn else "",
        sampling=_sampling(read_manifest(folder).sampling),
        parts=_parts(folder, images, motion),
        recipe=_recipe(images) + _recipe(motion),
        data=markdown(
            ["data set", "licence", "consent", "hours"],
            [[*(_cell(s[k]) for k in ("dataset", "licence", "consent")), _hours(s["frames"])] for s in sources],
            range(3),
        ),
        terms=_terms(licence, sources),
        numbers="No evaluation was given to this card.\n" if printed is None else _numbers(printed),
        use="Not for commercial use (see Data)." if non_commercial(licence) else "",
        limits=_limits(images, None if printed is None else printed.metrics, drawn),
    )
    write_text(folder / CARD, f"---\n{about.to_yaml()}\n---\n{text}")


def allowed_licence(licence: str | None, sources: Sequence[Mapping[str, Any]]) -> str:
    """The licence of weights that learned from `sources`; None: what these demand, else unknown. Raises UserError for one
    that allows commercial use where the data do not.
    """
    demanded = sorted({str(source["licence"]) for source in sources if non_commercial(str(source["licence"]))})
    if licence is None:
        return UNKNOWN if not demanded else demanded[0] if len(demanded) == 1 else "non-commercial"
    if demanded and not non_commercial(licence):
        names = ", ".join(f"{s['dataset']} ({s['licence']})" for s in sources if s["licence"] in demanded)
        raise UserError(
            f"--licence {licence}: these weights learned from non-commercial data, {names}; they stay non-commercial. "
            f"Leave the licence out, or give one such as {demanded[0]}"
        )
    return licence


@dataclass(frozen=True)
class Printed:
    """What an evaluation printed: numbers as in metrics.json, how it sampled, and the rows of its table."""

    metrics: Mapping[str, Any]
    sampling: Mapping[str, Any]
    rows: Sequence[Sequence[str]]

    @staticmethod
    def read(evaluation: Path, images: Artifact, motion: Artifact) -> Printed:
        """Raises UserError unless `af evaluate` wrote the folder for these weights and its numbers are those of its table."""
        try:
            return Printed._read(evaluation, images, motion)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{evaluation}: evaluation.json, metrics.json and metrics.md are not as af evaluate writes them ({error!r}); "
                "run af evaluate again"
            ) from error

    @staticmethod
    def _read(evaluation: Path, images: Artifact, motion: Artifact) -> Printed:
        settings = read_json(evaluation / "evaluation.json")
        for key, model in (("autoencoder", images), ("denoiser", motion)):
            if (digest := settings.get(key)) != model.digest:
                raise UserError(
                    f"{evaluation} evaluated another {key} (sha256 {str(digest)[:12]}… instead of {model.digest[:12]}…): "
                    "a card has numbers of its own weights alone; run af evaluate with them"
                )
        metrics, table = read_json(evaluation / "metrics.json"), evaluation / "metrics.md"
        if not table.is_file():
            raise UserError(f"{table} is missing: the evaluation did not finish; run the same af evaluate again")
        lines = [line for line in table.read_text("utf-8").splitlines() if line.startswith("| ")]
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
        said = {row[0].split()[0]: [row[i].split(" ± ")[0] for i in (1, 3, 4)] for row in rows}
        for tag in metrics["better"]:
            values = [metrics.get(key, _ABSENT) for key in (tag, f"{tag}/true", f"{tag}/null")]
            kept = ["–" if v is _ABSENT else number_text(math.nan if v is None else v) for v in values]
            if said.get(tag) != kept:
                raise UserError(
                    f"{evaluation}: {tag} is {' | '.join(kept)} in metrics.json, {' | '.join(said.get(tag, ['absent']))} in "
                    "metrics.md: no run printed these numbers; run af evaluate again"
                )
        return Printed(metrics, read_sampling(settings), rows)


def _numbers(printed: Printed) -> str:
    metrics, wanted = printed.metrics, {*printed.metrics["headline"], *_ALSO}
    running = [row for row in printed.rows if _RUNNING.fullmatch(row[0].split()[0])]
    shown = [row for row in printed.rows if row[0].split()[0] in wanted]
    people = {"held out": "None of the people in them was trained on.", "training data": "**Trained on these people.**"}
    text = (
        f"By `af evaluate` of exactly these weights on {metrics.get('clips', '?')} conversations, with {_sampling(printed.sampling)}. "
        f"{people.get(str(metrics.get('people')), 'Whether their people were trained on is unknown.')} *Ground truth* is the "
        "same measure of the real video, *null* that of users, voices or mouths of another conversation, as the protocol says "
        "(for `psnr` and `ssim`: of the portrait shown unchanged). ↓ less is better, ↑ more; unmarked: the nearer to the truth.\n\n"
        f"{markdown([*HEADER, 'protocol'], shown, (0, 6))}"
    )
    if not running:
        return text
    where: Any = metrics.get("machine") or {}
    named = ", ".join(
        filter(None, [str(where.get("processor", "")), f"{where.get('cores', '?')} cores", *where.get("gpus", [])])
    )
    return (
        f"{text}\nHow long it takes, on {named if where else 'a machine that was not recorded'} (`speed/rtf` below 1 is faster "
        f"than playing):\n\n{markdown(['measure', 'value', 'protocol'], ([r[0], r[1], r[6]] for r in running), (0, 2))}"
    )


def _limits(images: Artifact, metrics: Mapping[str, Any] | None, drawn: bool) -> str:
    model: Any = images.model
    lines = [f"{model.image_size} x {model.image_size} pixels; a face and what is around it, no hands and no body."]
    lines.append(
        "Trained and measured on drawn people alone." if drawn else "Faces unlike those of its data were not tried."
    )
    lines.append(
        "Languages, ages, skin tones and glasses were not measured one by one: it may serve some people worse."
    )
    if metrics is None:
        lines.append("How well it works has not been measured.")
    elif worse := worse_than_null(metrics):
        lines.append(f"Worse than the null by more than a standard error: {', '.join(f'`{tag}`' for tag in worse)}.")
    return "".join(f"- {line}\n" for line in lines)


def _terms(licence: str, sources: Sequence[Mapping[str, Any]]) -> str:
    said = [f"The weights' licence: **{licence}**."]
    if non_commercial(licence):
        said.append(
            "Non-commercial, because of the data; whatever is trained from, distilled from or exported of it is, too."
        )
    if any(UNKNOWN in (source["licence"], source["dataset"]) for source in sources):
        said.append("**Of some data no licence is recorded: ask for the rights before you use this.**")
    if any(source["consent"] == UNKNOWN for source in sources):
        said.append("**What the people shown agreed to is not recorded for all data.**")
    return " ".join(said)


def _parts(folder: Path, images: Artifact, motion: Artifact) -> str:
    rows = []
    for part, artifact in ((AUTOENCODER, images), (DENOISER, motion)):
        file = folder / part / WEIGHTS
        numbers = sum(shape.numel() for shape in shapes_of(file).values())
        size = f"{file.stat().st_size / 1e6:.1f}"
        rows.append(
            [part, f"{numbers / 1e6:.2f} M", size, str(artifact.info.get("steps", "–")), f"`{artifact.digest}`"]
        )
    features: Any = motion.info["features"]
    kind = str(features["_target_"]).rpartition(".")[2]
    rows.append([f"features ({kind})", "–" if "checkpoint" not in features else "in features/", "–", "–", "–"])
    return markdown(["part", "weights", "MB", "steps", "SHA-256"], rows, (0, 4))


def _recipe(artifact: Artifact) -> str:
    stage, made = artifact.info.get("stage", "model"), artifact.info.get("recipe")
    beside = artifact.folder.parent / "environment.json"  # models of earlier versions do not say it themselves
    if made is None and beside.is_file():
        found = read_json(beside)
        made = {"command": found["command"][1:], "git_commit": found["git_commit"], "changed": bool(found["git_diff"])}
    if not isinstance(made, Mapping):
        return f"**{stage}**: neither command nor commit was recorded.\n\n"
    commit = made.get("git_commit") or "not recorded"
    changed = ", with changes that are not in it" if made.get("changed") else ""
    command = shlex.join(["af", *public({"recipe": made})["recipe"]["command"]])
    return f"**{stage}**, at commit `{commit}`{changed}; paths are left out:\n\n```sh\n{command}\n```\n\n"


def _sampling(sampling: Mapping[str, Any]) -> str:
    named = ("steps", "solver", "schedule", "guidance", "anchor")
    steps, solver, schedule, guidance, anchor = (sampling[name] for name in named)
    scales = ", ".join(f"{name} {scale:g}" for name, scale in vars(guidance).items() if scale)
    held = f", anchored (sink {anchor.sink_frames} frames, pull {anchor.pull:g})"
    band = f", dead band {width:g}" if (width := sampling.get("dead_band", 0.0)) else ""
    return f"{steps} steps a block ({solver}, {schedule}), guidance {scales}{held if anchor.sink_frames or anchor.pull else ''}{band}"


def _hours(frames: int) -> str:
    return f"{frames_to_seconds(frames) / 3600:.2f}" if frames else "–"


def _cell(value: Any) -> str:
    return re.sub(r"[|\n<>]", " ", str(value))
