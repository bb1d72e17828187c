"""The same value on 1, 2 and 3 processes, with unequal numbers of clips, repeats, and a process without any clip."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from af.evaluation.gathered import (
    SID,
    DriftMetric,
    FrechetFeatures,
    KernelDistance,
    ReactionGainMetric,
    StreamingSID,
)
from af.evaluation.modules import (
    FD,
    PFD,
    RPCC,
    TLCC,
    BorderRatio,
    Jerk,
    Latency,
    LipSync,
    MeanPerItem,
    MouthCorr,
    React,
    RealTimeFactor,
    Variance,
    VarRatio,
)
from af.metrics import functional
from af.metrics.audio import log_mel

CLIPS, FRAMES, DIMS = 7, 210, 3


def make_data() -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)

    def motion(dims: int, frames: int) -> np.ndarray:
        return np.stack([np.convolve(rng.normal(size=frames + 4), np.ones(5) / 5, "valid") for _ in range(dims)], 1)

    lengths = [FRAMES + 3 * i for i in range(CLIPS)]
    data = {name: [motion(DIMS, n) + 2.0 for n in lengths] for name in ("user", "true", "generated")}
    data["audio"] = [rng.normal(size=n * 640) * np.repeat(np.abs(motion(1, n)[:, 0]), 640) for n in lengths]
    data["mel"] = [log_mel(a, n, 3) for a, n in zip(data["audio"], lengths, strict=True)]
    return data


def run_all(mine: list[int]) -> dict[str, np.ndarray]:
    """Update every metric with the clips numbered in `mine`, clip by clip, and compute."""
    data = make_data()
    model = functional.ReactionModel(lags=10, shifts=4)
    metrics = {
        "rpcc": RPCC(DIMS),
        "rpcc clip": RPCC(DIMS, "clip"),
        "rpcc dim": RPCC(DIMS, "dim"),
        "tlcc": TLCC(20),
        "fd": FD(),
        "pfd": PFD(),
        "var": Variance(),
        "var pooled": Variance("pooled"),
        "var_ratio": VarRatio(DIMS),
        "border": BorderRatio(10),
        "jerk": Jerk(),
        "lip": LipSync(),
        "mouth": MouthCorr(),
        "smile": React("smile"),
        "nod": React("nod"),
        "mean": MeanPerItem(lambda clip: clip[:, 0]),
        "latency": Latency(10),
        "sid": SID(DIMS, 6),
        "sid streaming": StreamingSID(np.eye(DIMS) + 2),
        "gain": ReactionGainMetric(DIMS, 3, model),
        "fd_img": FrechetFeatures(DIMS),
        "kd": KernelDistance(DIMS, subset=50, subsets=5),
        "speed": RealTimeFactor(("motion", "decoding")),
        "drift": DriftMetric(np.full(DIMS, 2.0), np.eye(DIMS), 2, 100),
    }
    for i in mine:
        x, y, g, a, m = ([data[k][i]] for k in ("user", "true", "generated", "audio", "mel"))
        for name in ("rpcc", "rpcc clip", "rpcc dim", "pfd"):
            metrics[name].update(x, y, g)
        metrics["tlcc"].update(x, g)
        metrics["fd"].update(y, g)
        metrics["var_ratio"].update(y, g)
        metrics["drift"].update(g, [g[0][:, 0] ** 2])
        metrics["speed"].update({"motion": 0.1 * (i + 1), "decoding": 2.0}, len(g[0]))
        metrics["nod"].update([range(20, 200, 40 + i)], y, g, [range(10, 200, 50)])
        for name in ("var", "var pooled", "border", "jerk", "sid streaming"):
            metrics[name].update(g)
        metrics["lip"].update([g[0][:, 0]], a)
        metrics["mouth"].update([y[0][:, 0]], [g[0][:, 0]])
        metrics["smile"].update([x[0][:, 0]], [y[0][:, 0]], [g[0][:, 0]], [data["user"][(i + 1) % CLIPS][:, 0]])
        metrics["mean"].update(g[0])
        metrics["latency"].update([float(i), i + 0.5])
        metrics["sid"].update([i], y, g)
        metrics["gain"].update([i], x, y, g, m, m[::-1], [i // 2])
        for real, clip in ((True, y[0]), (False, g[0])):
            metrics["fd_img"].update(clip, real=real)
            metrics["kd"].update([1000 * i + t for t in range(len(clip))], clip, real=real)
    for name in ("sid", "gain"):  # the padding of distributed validation: a repeat counts once
        if mine:
            x, y, g, m = ([data[k][mine[0]]] for k in ("user", "true", "generated", "mel"))
            arguments = (x, y, g, m, m, [mine[0] // 2]) if name == "gain" else (y, g)
            metrics[name].update([mine[0]], *arguments)
    values = {}
    for name, metric in metrics.items():
        result = metric.compute()
        for key, value in result.items() if isinstance(result, dict) else [("", result)]:
            values[f"{name} {key}"] = np.asarray(value)
    return values


# Clips by rank: all on one, very uneven, and in the group of three one rank has none.
SHARES = {1: [[*range(CLIPS)]], 2: [[0, 2, 3, 4, 5, 6], [1]], 3: [[], [6, 1, 2, 3], [0, 4, 5]]}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for world, shares in SHARES.items():  # the same processes form one group after the other
        if rank < world:
            rendezvous = f"file://{folder}/rendezvous{world}"
            torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=world)
            np.savez(f"{folder}/world{world}rank{rank}.npz", **run_all(shares[rank]))
            torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def single() -> dict[str, np.ndarray]:
    return run_all(list(range(CLIPS)))


@pytest.mark.filterwarnings("ignore")
def test_ranks_agree_with_one_process(single, tmp_path: Path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=3)
    for world in SHARES:
        for rank in range(world):
            got = np.load(tmp_path / f"world{world}rank{rank}.npz")
            assert set(got) == set(single)
            for name, expected in single.items():
                assert_allclose(got[name], expected, rtol=1e-6, atol=1e-9, err_msg=f"{name}, rank {rank} of {world}")


def test_classes_equal_the_functions(single):
    data = make_data()
    x, y, g = (data[k] for k in ("user", "true", "generated"))
    expected = {
        "rpcc rpcc": functional.rpcc(x, y, g),
        "rpcc clip rpcc": functional.rpcc(x, y, g, "clip"),
        "rpcc dim rpcc": functional.rpcc(x, y, g, "dim"),
        "rpcc pcc/true": functional.pcc(x, y),
        "tlcc peak": functional.tlcc(x, g, 20).peak,
        "fd ": functional.fd(y, g),
        "pfd ": functional.pfd(x, y, g),
        "var ": functional.variance(g),
        "var pooled ": functional.variance(g, "pooled"),
        "var_ratio ": functional.var_ratio(y, g),
        "border ": functional.border_ratio(g, 10),
        "jerk ": functional.jerk(g),
        "sid sid": functional.sid(y, g, 6),
        "mean ": np.mean(np.concatenate(g)[:, 0]),
        "latency worst_ms": 400 + 6.5,
        "latency mean_ms": 220 + 3.25,
        "speed speed/rtf": (0.1 * 28 + 2.0 * CLIPS) / (sum(map(len, g)) / 25),
        "speed speed/rtf/motion": 0.1 * 28 / (sum(map(len, g)) / 25),
    }
    frames = [np.concatenate(side) for side in (y, g)]
    moments = [part for f in frames for part in (f.mean(0), np.cov(f, rowvar=False))]
    expected["fd_img "] = functional.frechet_distance(*moments)
    values = functional.react_correlation([c[:, 0] for c in x], [c[:, 0] for c in g], 11)
    expected["smile react/smile"], expected["smile react/smile/se"] = values.mean, values.standard_error
    gain = functional.reaction_gain(
        x, y, g, data["mel"], [m[::-1] for m in data["mel"]], ["0", "0", "1", "1", "2", "2", "3"], lags=10, shifts=4
    )
    assert np.isfinite(single["gain reaction_gain"])
    assert gain is not None
    for name, value in expected.items():
        assert_allclose(single[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_state_does_not_grow_and_the_network_is_not_in_it():
    network = torch.nn.Linear(12, 4)
    metric = FrechetFeatures(4, lambda pictures: network(pictures.flatten(1)))
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for real in (True, False, True, False):
        metric.update(torch.rand(6, 3, 2, 2, generator=generator), real=real)
        sizes.append(sum(v.numel() for v in metric.metric_state.values()))
    assert len(set(sizes)) == 1
    assert list(metric.parameters()) == []
    assert torch.isfinite(metric.compute())
    assert metric.float().half().metric_state["sums"].dtype == torch.float64


def test_reset_and_no_clip_give_nan_with_a_reason():
    metric = FD()
    metric.update([np.eye(3)], [np.eye(3) + 1])
    metric.reset()
    with pytest.warns(UserWarning, match="FD: no clip"):
        assert torch.isnan(metric.compute())
