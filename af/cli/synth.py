"""Write synthetic conversations as shards: two drawn people who talk and listen, for training and for checks.

  af synth --out data/demo
  af synth --out data/demo --train 160 --val 16 --test 64 --seconds 16 --size 64 --seed 0 --workers 2
  af synth --out data/large --train 400 --size 128 --smile-every 8

Who reacts to what is known: lips follow the own voice, nods the end of the partner's phrase (heard), smiles and head
tilts are answered about half a second after the partner's (only seen). So whether a model learned to react can be
measured. Each sample holds both videos, both voices and both tracks of face parameters; what happened when is in its
json. The same settings give the same bytes. A stopped run goes on where it was; a finished set is recognised.
"""

from __future__ import annotations

from typing import Annotated

from af.cli.kinds import OutFolder, Overwrite, Workers
from af.synth.build import SynthSettings, build

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "finished shards are kept, and the same command makes the others"


def run(
    settings: SynthSettings,
    *,
    out: Annotated[OutFolder, "folder for train/, val/ and test/"],
    workers: Workers = 2,
    overwrite: Annotated[Overwrite, "delete a set with other settings in --out first"] = False,
) -> None:
    """Generate and report."""
    indices, report = build(out, settings, workers=workers, overwrite=overwrite)
    for index in indices:
        print(f"{index.folder}: {len(index.samples)} conversations, {index.frames} frames, 2 faces each")
    if not report.made:
        print("nothing to do: the set was finished before")
