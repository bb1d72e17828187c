"""Hand an avatar on: a hub folder with its model card, to and from a hub.

  af share card --autoencoder runs/demo/vae/export --denoiser runs/demo/denoiser/export \\
    --evaluation runs/demo/evaluation --out shared/demo
  af share push shared/demo OWNER/NAME
  af share pull OWNER/NAME --out shared/demo [--revision v1]

A hub folder holds autoencoder, denoiser, features and sampling (safetensors and JSON), and README.md, the card. In Python:
Avatar.from_pretrained("OWNER/NAME"). HF_ENDPOINT names another hub, HF_TOKEN who is asking. docs/sharing.md says more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from af.cli.kinds import Model, OutFolder
from af.cli.options import More

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "the same command continues"
Repo = Annotated[str, More(metavar="OWNER/NAME"), "name on the hub"]


def card(
    *,
    autoencoder: Annotated[Model, "model folder, run or checkpoint of the motion VAE"],
    denoiser: Annotated[Model, "model folder, run or checkpoint of the denoiser"],
    evaluation: Annotated[Path, More(metavar="FOLDER"), "of `af evaluate`, of these very weights"],
    out: Annotated[OutFolder, "hub folder to write"],
    licence: Annotated[str | None, "of the weights (default: what the data demand, else unknown)"] = None,
    name: Annotated[str | None, "title of the card (default: the folder's name)"] = None,
) -> None:
    """Write a hub folder: the models, how the evaluation sampled them, and the card with its numbers."""
    from af.share.card import write_with_card

    write_with_card(out, autoencoder, denoiser, licence=licence, evaluation=evaluation, name=name)
    print(f"{out}: avatar.json, README.md, autoencoder/, denoiser/; `af share push {out} OWNER/NAME` hands it on")


def push(
    folder: Annotated[Path, More(metavar="FOLDER"), "hub folder with its card"],
    repo: Repo,
    *,
    private: Annotated[bool, "others may not see it, if it is made anew"] = False,
) -> None:
    """Upload a hub folder, verified."""
    from af.share.hub import push

    print(push(folder, repo, private=private))


def pull(
    repo: Repo,
    *,
    out: Annotated[OutFolder, "folder to fetch it into"],
    revision: Annotated[str | None, "branch, tag or commit (default: the newest)"] = None,
) -> None:
    """Fetch a hub folder and verify it."""
    from af.share.hub import pull

    folder = pull(repo, revision, out)
    print(f"{folder}: af generate --autoencoder {folder}/autoencoder --denoiser {folder}/denoiser …")


VERBS = (card, push, pull)
