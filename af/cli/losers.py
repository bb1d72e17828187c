"""Make losers for the preference stage: worse motion of the same avatars in the same conversations.

  af losers --data data/demo-latents --denoiser runs/demo/denoiser/export --out data/demo-losers
  af losers --data data/demo-latents --denoiser runs/demo/denoiser/export --out data/weak losers=weak losers.user=0.3
  af losers --data data/demo-latents --out data/my-losers losers=file losers.folder=my_motions

`losers=` picks a source from conf/losers; its values can be overridden, and `losers._target_=` names one of your own
package:

  drop_user  the denoiser itself, rolled out without the user's signals
  weak       the denoiser with a guidance scale for the user below 1
  shuffled   the denoiser reacting to the user of another conversation
  talking    another denoiser, trained on the avatar's audio alone (losers.model=FOLDER; module.dropout.user=1 trains one)
  file       arrays KEY.a.npy and KEY.b.npy (frames x motion latent) from a folder

Each shard of the data becomes one of losers; existing shards are skipped, so a stopped job continues where it was, and
--share divides the work among the jobs of an array. Pass the folder to the stage as
data.losers=FOLDER module.online=null.
"""

from __future__ import annotations

from typing import Annotated

from af.cli.config import Configured
from af.cli.derived import WHEN_INTERRUPTED, RolledOut
from af.cli.kinds import Model
from af.cli.typed import require_types

__all__ = ["WHEN_INTERRUPTED", "run"]


def run(
    config: Configured,
    shards: RolledOut,
    *,
    denoiser: Annotated[Model | None, "model folder, run or checkpoint of the denoiser that makes them"] = None,
) -> None:
    """Make the losers of every split asked for."""
    if (plain := config.resolved("losers")) is None:
        return
    require_types(losers := plain["losers"], "losers")
    options = shards.options(denoiser)
    from af.pipeline.losers import make_losers

    for index in make_losers(shards.data, shards.out, losers, denoiser=denoiser, **options):
        print(f"{index.folder}: losers of {len(index.samples)} clips, {index.frames} frames")
