"""A stranger's metric: one class of a package of their own, in table, report and TensorBoard like any of ours."""

from __future__ import annotations

import json

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from af.evaluation.measured import Measured
from af.evaluation.report import write_report
from af.metrics import evaluate_clips, families
from af.metrics.records import EvaluationClip, Protocol
from af.types import FaceSpec
from tests.example_package.af_example.metrics import Nods


def test_a_metric_of_another_package_is_like_ours(tmp_path):
    face = FaceSpec(("smile", "pitch"), 1, "test/1")
    clips = []
    for i in range(3):
        low = np.zeros((60, 2))
        low[5 : 5 + 10 * (i + 1) : 10, 1] = 1  # i + 1 nods
        clips.append(EvaluationClip(f"c{i}", f"c{i}", np.zeros((60, 2)), low, low * (i < 2), face))
    result = evaluate_clips(clips, metrics=[*families(Protocol(resamples=20)), Nods(0.4)])
    row = result.rows[-1]
    assert (row.tag, row.value, row.ground_truth, row.n) == ("nods/count", 1.0, 2.0, 3)
    assert row.interval is not None
    assert row.protocol.startswith("pitch above 0.4")
    out = tmp_path / "out"
    measured = [Measured(clip) for clip in clips]
    assert write_report(out, result, Protocol(), title="theirs", measured=measured) == 0
    numbers = json.loads((out / "metrics.json").read_text())
    assert (numbers["nods/count"], numbers["nods/count/true"]) == (1.0, 2.0)
    assert "nods/count" in numbers["headline"]
    assert "| nods/count |" in (out / "metrics.md").read_text()
    assert json.loads((out / "clips.json").read_text())["c1"]["nods/count"] == 2
    assert "nods/count" in (out / "gallery.html").read_text()
    scalars = EventAccumulator(str(out / "tensorboard")).Reload().Tags()["scalars"]
    assert {"nods/count", "nods/count/true"} <= set(scalars)
