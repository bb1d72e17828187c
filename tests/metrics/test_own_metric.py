"""A stranger's metric: one class of a package of their own, in table, report and TensorBoard like any of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from af.evaluation.report import write_report
from af.metrics import evaluate_clips, families
from af.metrics.records import EvaluationClip, Protocol
from af.types import FaceSpec

#: The whole package.
THEIRS = '''
import numpy as np
from af.metrics.base import ClipMetric


class Blinks(ClipMetric):
    """How often the eyes close."""

    needs = {"blinks": "face parameters"}
    headline = ("blinks/rate",)
    on_card = ("blinks/rate",)

    def measure(self, clip):
        eye = clip.face.names.index("blink")
        return {side: np.sum(np.diff((clip.side(side, eye) > 0.5).astype(int)) == 1) for side in ("true", "generated")}

    def tabulate(self, table):
        true, own = table.sums("true"), table.sums("generated")
        table.mean("blinks/rate", own.astype(float), true=true.astype(float), protocol="closings a clip")
'''


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import theirs

    yield theirs
    del sys.modules["theirs"]


def test_a_metric_of_another_package_is_like_ours(theirs, tmp_path):
    face = FaceSpec(("blink", "yaw"), 1, "test/1")
    clips = []
    for i in range(3):
        closed = np.zeros((60, 2))
        closed[5 : 5 + 10 * (i + 1) : 10, 0] = 1  # i + 1 closings
        clips.append(
            EvaluationClip(f"c{i}", f"c{i}", np.zeros((60, 2)), closed, np.roll(closed[:30].repeat(2, 0), i, 0), face)
        )
    result = evaluate_clips(clips, metrics=[*families(Protocol(resamples=20)), theirs.Blinks()])
    row = result.rows[-1]
    assert (row.tag, row.ground_truth, row.n) == ("blinks/rate", 2.0, 3)
    assert row.interval is not None
    out = tmp_path / "out"
    write_report(out, result.rows, result, clips, Protocol(), title="theirs", videos={})
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["blinks/rate"] == row.value
    assert numbers["better"]["blinks/rate"] == "true"
    assert "blinks/rate" in numbers["headline"]
    assert "| blinks/rate |" in (out / "metrics.md").read_text()
    assert json.loads((out / "clips.json").read_text())["c2"]["blinks/rate"] > 0
    assert "blinks/rate" in (out / "gallery.html").read_text()
    scalars = EventAccumulator(str(out / "tensorboard")).Reload().Tags()["scalars"]
    assert {"blinks/rate", "blinks/rate/true"} <= set(scalars)
