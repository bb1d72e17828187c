"""Compare videos or face parameters of any system with true ones, in the same table as `af evaluate`.

  af compare clips.csv --out runs/comparison evaluation/tracker=mediapipe

Clips are listed in a CSV or JSON file, paths relative to it:

  clip,user,true,generated,audio
  talk1,user1.mp4,avatar1.mp4,ours/1.mp4,avatar1.wav

A side is a video, or an array of face parameters at 25 fps (npy, npz or csv, frames x parameters). Further columns, all
optional: user_audio, user_face, true_face, generated_face (arrays beside the videos), source (portrait), identity,
session, phrase_ends. `audio` is the avatar's voice (default: the true video's).

What a metric needs, as values of the configuration group `evaluation`:

  face parameters   arrays (evaluation.expression=N evaluation.names=[…] evaluation.tracker_of_arrays=NAME/VERSION), or
                    evaluation/tracker=mediapipe, or evaluation/tracker=drawn
  border_ratio      evaluation.protocol.block=FRAMES of the generator
  FID, FVD          evaluation/networks=[thumbnail,inception,i3d] evaluation.networks.inception.path=FILE
                    evaluation.networks.i3d.path=FILE evaluation.networks.i3d.sha256=HASH
  any network       evaluation/networks=[torchscript] evaluation.networks.torchscript.path=FILE .name=NAME
  identity          evaluation/embedder=torchscript evaluation.embedder.path=FILE evaluation.embedder.name=NAME
  LSE-D, LSE-C      evaluation/syncnet=weights evaluation.syncnet.path=syncnet_v2.model

Missing metrics are listed as not computed, with the reason. Nothing is downloaded or substituted.

An unreadable clip is reported by file and skipped. The same command continues after a stop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from af.cli.config import Configured, instantiate
from af.cli.kinds import Device, OutFolder
from af.cli.options import More
from af.errors import UserError

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "measurements are kept, and the same command continues with the rest"


def run(
    clips: Annotated[Path, More(metavar="clips.csv"), "CSV or JSON list of clips"],
    config: Configured,
    *,
    out: Annotated[OutFolder, "folder for the results"],
    device: Device = "auto",
) -> int:
    """Compose, measure, report."""
    if (plain := config.resolved("compare")) is None:
        return 0
    from af.evaluation.read_videos import compare
    from af.evaluation.settings import FilesSettings

    settings = instantiate(plain["evaluation"], "evaluation")
    if not isinstance(settings, FilesSettings):
        raise UserError("evaluation: these are the settings of a model's evaluation; files take evaluation=compare")
    settings.on(device)
    return compare(clips, out, settings)
