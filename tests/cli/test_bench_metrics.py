from __future__ import annotations

from af.cli.bench_metrics import bench


def test_every_metric_is_timed_and_the_required_ones_are_summed() -> None:
    result = bench(clips=2, frames=120, parameters=4, repeats=1)
    seconds, required = result["seconds"], result["required"]
    assert required["metrics"] == ["rpcc", "variance", "fd", "tlcc"]
    assert all(value > 0 for value in seconds.values())
    assert abs(required["seconds"] - sum(seconds[name] for name in required["metrics"])) < 1e-3
