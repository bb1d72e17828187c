from __future__ import annotations

import numpy as np
import pytest

from af.data import events
from af.data.events import activity, listener_activity, start_weights
from af.data.index import Index
from af.errors import UserError
from af.voice import listening_frames


def test_activity_is_the_speed_of_a_listener():
    motion = np.zeros((30, 3), np.float32)
    motion[20:, 1] = 2.0  # one jump
    listening = np.ones(30, bool)
    curve = activity(motion, listening)
    assert curve[18:23] == pytest.approx([0.4] * 5)
    assert curve.sum() == pytest.approx(2.0)
    listening[:25] = False  # it speaks then
    assert (activity(motion, listening) == 0).all()


def test_windows_with_reactions_weigh_more(latents):
    index = Index.load(latents / "train")
    quiet = {f"{i}.{role}": np.zeros(s.frames, np.float32) for i, s in enumerate(index.samples) for role in "ab"}
    quiet["1.b"][60:70] = 1.0
    sizes = {"frames": 20, "block": 5}
    assert all((w == 256).all() for sample in start_weights(index, quiet, balance=0, **sizes) for w in sample.values())
    weights = start_weights(index, quiet, balance=0.5, **sizes)
    starts = 5 * np.arange(len(weights[1]["b"]))
    assert (weights[0]["a"] == 256).all()
    assert ((weights[1]["b"] > 256) == ((starts > 40) & (starts < 70))).all()
    with pytest.raises(UserError, match=r"data\.balance: -1"):
        start_weights(index, quiet, balance=-1, **sizes)


def test_activity_of_shards_is_kept_and_made_again_for_others(latents, tmp_path, monkeypatch):
    import shutil

    folder = shutil.copytree(latents / "train", tmp_path / "train")
    index = Index.load(folder)
    first = listener_activity(index, listening_frames)
    assert set(first) == {f"{i}.{role}" for i in range(len(index.samples)) for role in "ab"}
    assert all(len(first[f"{i}.a"]) == s.frames for i, s in enumerate(index.samples))
    assert sum(curve.sum() for curve in first.values()) > 0
    monkeypatch.setattr(events, "ShardReader", None)  # not read again
    again = listener_activity(index, listening_frames)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    np.savez(folder / events.NAME, shards=np.array("other"))
    with pytest.raises(TypeError):
        listener_activity(index, listening_frames)
