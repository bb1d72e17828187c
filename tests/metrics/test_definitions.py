"""Each metric on inputs whose value can be worked out by hand, and against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.linalg import sqrtm

from af.metrics import evaluate_clips
from af.metrics.arrays import UndefinedMetricWarning
from af.metrics.base import ClipMetric
from af.metrics.coupling import Coupling, tlcc_curves
from af.metrics.diversity import Diversity
from af.metrics.frechet import FaceDistances, clip_frechet, frechet_distance, kernel_distance
from af.metrics.latency import latency, real_time_factor
from af.metrics.likeness import csim, psnr, ssim
from af.metrics.records import EvaluationClip, MetricRow
from af.metrics.smoothness import Smoothness, drift
from af.types import FaceSpec


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def rows(metric: ClipMetric, user, true, generated) -> dict[str, MetricRow]:
    """The rows of one family for clips whose parameters are all expressions."""
    dims = user[0].shape[1]
    face = FaceSpec(tuple(f"p{d}" for d in range(dims)), dims, "test/1")
    sides = enumerate(zip(user, true, generated, strict=True))
    return {
        row.tag: row
        for row in evaluate_clips([EvaluationClip(str(i), str(i), *s, face) for i, s in sides], metrics=[metric]).rows
    }


def values(metric: ClipMetric, user, true, generated) -> dict[str, float]:
    return {tag: row.value for tag, row in rows(metric, user, true, generated).items()}


X = [np.array([[0.0], [1.0], [2.0]]), np.array([[3.0], [1.0]])]
Y = [np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [3.0]])]
G = [np.array([[1.0], [0.0], [0.0]]), np.array([[3.0], [0.0]])]


def test_rpcc_by_hand():
    # clip 1: r(x, y) = 1, r(x, ŷ) = -√3/2; clip 2: r = -1, r = 1
    found = values(Coupling(), X, Y, G)
    assert_allclose(found["rpcc/exp/clip"], ((1 + np.sqrt(3) / 2) + 2) / 2)
    x, y, g = (np.concatenate(c)[:, 0] for c in (X, Y, G))
    expected = abs(np.corrcoef(x, y)[0, 1] - np.corrcoef(x, g)[0, 1])
    assert_allclose(found["rpcc/exp"], expected)
    assert_allclose(found["rpcc/exp/dim"], expected)  # one dimension: the same
    assert_allclose(found["pcc/exp"], np.corrcoef(x, g)[0, 1])


def test_rpcc_poolings_differ_where_they_should(rng):
    x = [rng.normal(size=(30, 3)) * [1, 5, 9] + [0, 10, -4] for _ in range(4)]
    y, g = ([rng.normal(size=(30, 3)) for _ in range(4)] for _ in range(2))
    found = values(Coupling(), x, y, g)
    flat = [np.concatenate([c.ravel() for c in side]) for side in (x, y, g)]
    expected = abs(np.corrcoef(flat[0], flat[1])[0, 1] - np.corrcoef(flat[0], flat[2])[0, 1])
    assert_allclose(found["rpcc/exp"], expected)
    a, b, c = (np.concatenate(side) for side in (x, y, g))
    dims = [abs(np.corrcoef(a[:, d], b[:, d])[0, 1] - np.corrcoef(a[:, d], c[:, d])[0, 1]) for d in range(3)]
    assert_allclose(found["rpcc/exp/dim"], np.mean(dims))


def test_perfect_copy_is_zero_whatever_the_floats(rng):
    user, true = ([rng.normal(size=(n, 4)).astype(np.float32) for n in (60, 71)] for _ in range(2))
    for metric in (Coupling(), FaceDistances()):
        for tag, row in rows(metric, user, true, true).items():
            assert row.value == pytest.approx(row.ground_truth, abs=1e-9), tag
    other = [rng.normal(size=c.shape).astype(np.float32) for c in true]
    single, double = (
        values(Coupling(), *([c.astype(kind) for c in s] for s in (user, true, other))) for kind in ("f4", "f8")
    )
    assert single == double


@pytest.mark.parametrize("delay", [-7, 0, 11, 49])
def test_tlcc_finds_the_delay(rng, delay):
    user = [rng.normal(size=(200, 3)) for _ in range(3)]
    avatar = [np.roll(c, delay, axis=0) for c in user]
    found = rows(Coupling(), user, user, avatar)
    assert found["tlcc/exp/lag"].value == delay
    assert found["tlcc/exp/lag"].ground_truth == 0
    assert_allclose(found["tlcc/exp/peak"].value, 1.0)


def test_tlcc_equals_plain_pearson_at_every_lag(rng):
    user, avatar = rng.normal(size=(60, 2)) + 100, rng.normal(size=(60, 2)).cumsum(0) - 1e3
    for lag, value in zip(range(-9, 10), tlcc_curves([user], [avatar], 9)[0], strict=True):
        first, second = (user[: 60 - lag], avatar[lag:]) if lag >= 0 else (user[-lag:], avatar[: 60 + lag])
        expected = np.mean([np.corrcoef(first[:, d], second[:, d])[0, 1] for d in range(2)])
        assert_allclose(value, expected, rtol=1e-9)


def test_sid_by_hand():
    # two clusters at 0 and 10: three quarters of the generated frames in one of them
    true = [np.array([[0.0], [0.1], [10.0], [10.1]])]
    generated = [np.array([[0.0], [1.0], [2.0], [9.0]])]
    row = rows(Diversity(((2, 2),)), true, true, generated)["sid/exp"]
    assert_allclose(row.value, -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert_allclose(row.ground_truth, 1.0)


def test_sid_equals_scikit_learn(rng):
    from sklearn.cluster import KMeans

    true, generated = ([rng.normal(size=(n, 5)) * s for n in (70, 90)] for s in (1.0, 0.5))
    model = KMeans(7, random_state=0, n_init="auto").fit(np.concatenate(true))
    p = np.bincount(model.predict(np.concatenate(generated)), minlength=7) / 160
    found = values(Diversity(((7, 7),)), true, true, generated)
    assert_allclose(found["sid/exp"], -(p[p > 0] * np.log2(p[p > 0])).sum())


def test_variance_by_hand():
    clips = [np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[0.0, 0.0], [4.0, 2.0]])]
    found = rows(Diversity(()), clips, clips, [c / 2 for c in clips])
    assert_allclose(found["var/exp"].ground_truth, ((1 + 0) / 2 + (4 + 1) / 2) / 2)
    assert_allclose(found["var/exp/pooled"].ground_truth, np.var([0, 1, 2, 1, 0, 0, 4, 2]))
    assert_allclose([found[f"var_ratio/{name}"].value for name in ("p0", "p1", "exp")], [0.25, 0.25, 0.25])


def test_expressions_that_hardly_move_do_not_decide_the_ratio_and_have_no_rows(rng):
    true, own = (rng.normal(size=(50, 3)) * [1.0, 0.2, size] for size in (0.001, 0.5))
    found = rows(Diversity(()), [true], [true], [own])
    speeds = rows(Smoothness(), [true], [true], [own])
    assert {tag for tag in speeds if tag.startswith("speed_ratio")} == {"speed_ratio/p0", "speed_ratio/p1"}
    face = FaceSpec(("p0", "p1", "yaw"), 2, "test/1")
    turned = evaluate_clips([EvaluationClip("0", "0", true, true, own, face)], metrics=[Smoothness()]).rows
    assert "speed_ratio/yaw" in {row.tag for row in turned}  # poses have other units
    moving = [found[f"var_ratio/p{d}"].value for d in (0, 1)]
    assert "var_ratio/p2" not in found
    assert_allclose(found["var_ratio/exp"].value, np.mean(moving))


def test_frechet_closed_forms(rng):
    # diagonal covariances commute: Σ (√a − √b)²
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.0])
    mean = np.array([1.0, -2.0, 0.5])
    expected = np.sum(mean**2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert_allclose(frechet_distance(mean, np.diag(a), np.zeros(3), np.diag(b)), expected)
    for dims in (1, 2, 5, 30):
        first, second = (m @ m.T for m in rng.normal(size=(2, dims, dims)))
        m1, m2 = rng.normal(size=(2, dims))
        root = sqrtm(first @ second).real
        expected = np.sum((m1 - m2) ** 2) + np.trace(first + second - 2 * root)
        assert_allclose(frechet_distance(m1, first, m2, second), expected, rtol=1e-7)


def test_frechet_takes_tensors_and_names_a_wrong_shape(rng):
    mean, cov = torch.zeros(3), torch.eye(3)
    assert frechet_distance(mean, cov, mean + 2, 4 * cov) == pytest.approx(3 * 4 + 3 * (1 - 2) ** 2)
    assert frechet_distance(0.0, 1.0, 1.0, 4.0) == pytest.approx(1 + 1)
    with pytest.raises(ValueError, match=r"mean2 has shape \(2,\)"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=r"cov1 has shape \(1, 3\)"):
        frechet_distance(np.zeros(3), np.ones(3), np.zeros(3), np.eye(3))
    with pytest.warns(UndefinedMetricWarning, match="cov2 is not finite"):
        assert np.isnan(frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.full((2, 2), np.nan)))


def test_fd_by_hand():
    # one dim, ddof 1: means 1 and 4, variances 1 and 4; the second clip pair is equal
    true = [np.array([[0.0], [1.0], [2.0]]), np.array([[5.0], [7.0]])]
    generated = [np.array([[2.0], [4.0], [6.0]]), np.array([[5.0], [7.0]])]
    found = values(FaceDistances(), [np.zeros((3, 1)), np.ones((2, 1))], true, generated)
    assert_allclose(found["fd/exp"], ((4 - 1) ** 2 + (2 - 1) ** 2 + 0) / 2)
    assert_allclose(found["pfd/exp"], (9 + 1) / 2)  # the user adds a dim that both sides share


def test_frechet_of_singular_covariances_is_finite_and_symmetric(rng):
    first, second = rng.normal(size=(8, 20)), rng.normal(size=(5, 20))  # fewer frames than dims
    forth, back = clip_frechet(first, second), clip_frechet(second, first)
    assert np.isfinite(forth)
    assert_allclose(forth, back, rtol=1e-9)
    assert_allclose(clip_frechet(first, first + 3.0), 20 * 9.0, rtol=1e-9)  # a shift alone


def test_pfd_sees_broken_coupling_that_fd_cannot(rng):
    user = [rng.normal(size=(400, 2)) for _ in range(3)]
    true = [u + 0.1 * rng.normal(size=u.shape) for u in user]
    found = values(FaceDistances(), user, true, [rng.permutation(t) for t in true])
    assert_allclose(found["fd/exp"], 0, atol=1e-9)
    assert found["pfd/exp"] > 0.5


def test_kernel_distance_is_unbiased_and_sees_a_shift(rng):
    first, second = rng.normal(size=(2, 300, 6))
    assert abs(kernel_distance(first, second)[0]) < 0.05
    assert kernel_distance(first, second + 1)[0] > 0.5
    value, spread = kernel_distance(first, second + 1, subset=100, subsets=20)
    assert spread > 0
    assert_allclose(value, kernel_distance(first, second + 1)[0], rtol=0.2)


def border_ratio(series, block: int, first: int | None = None) -> float:
    return values(Smoothness(block, first), *[[np.reshape(series, (-1, 1))]] * 3)["border_ratio/exp"]


def test_border_ratio_by_hand():
    # second differences: 1 everywhere, 3 in the two that touch the border between frames 4 and 5
    second = np.ones(8)
    second[[3, 4]] = 3.0
    series = np.concatenate([[0.0, 0.0], np.cumsum(np.cumsum(second))])
    assert_allclose(border_ratio(series, 5), 3.0)
    assert_allclose(border_ratio(np.arange(30.0) ** 2, 5), 1.0)  # constant bend: seamless
    assert_allclose(border_ratio(series, 5, first=9), 1.0, atol=0.6)  # the border is elsewhere


def test_jerk_by_hand():
    t = np.arange(10.0) / 25
    one, two = [np.stack([t**3, 0 * t], 1)], [np.stack([t**3, t**3], 1)]
    row = rows(Smoothness(), one, two, one)["jerk/exp"]
    assert_allclose(row.value, 6.0)
    assert_allclose(row.ground_truth, 6.0 * np.sqrt(2))


def test_drift_by_hand(rng):
    coefficients = rng.normal(size=(6000, 3))
    coefficients[3000:] += 2.0
    result = drift(coefficients, np.zeros(3), np.eye(3), frame_sharpness=np.repeat([8.0, 4.0], 3000))
    assert len(result.distance) == 12
    assert_allclose(result.distance[0], 0, atol=0.05)
    assert_allclose(result.distance[-1], 12.0, rtol=0.1)
    assert_allclose(result.sharpness, [1.0] * 6 + [0.5] * 6)
    with pytest.warns(UserWarning, match="4 min"):
        drift(coefficients[:600], np.zeros(3), np.eye(3))


def test_pictures():
    image = torch.zeros(2, 3, 16, 16)
    assert_allclose(psnr(image, image + 0.2), 20 * np.log10(2 / 0.2), rtol=1e-5)
    assert_allclose(ssim(image + 0.3, image + 0.3), 1.0, rtol=1e-3)  # fp32 variances of a flat image
    assert_allclose(csim(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[2.0, 0.0]])), [1.0, np.sqrt(0.5)])


def test_ssim_equals_torchmetrics(rng):
    from torchmetrics.functional.image import structural_similarity_index_measure

    first = torch.from_numpy(rng.random((2, 3, 20, 24))).float() * 2 - 1
    second = (first + 0.2 * torch.from_numpy(rng.normal(size=first.shape)).float()).clamp(-1, 1)
    expected = structural_similarity_index_measure(second.double() + 1, first.double() + 1, data_range=2.0)
    assert_allclose(ssim(second, first), float(expected), rtol=1e-5)


def test_latency_by_hand():
    result = latency(10, [20.0, 40.0])
    assert_allclose([result.mean_ms, result.worst_ms], [5.5 * 40 + 30, 10 * 40 + 40])
    assert real_time_factor({"motion": 1.0, "decode": 1.5}, 125) == {
        "speed/rtf/motion": 0.2,
        "speed/rtf/decode": 0.3,
        "speed/rtf": 0.5,
    }


ALL = (Coupling(max_lag=20), Diversity(((4, 4),)), FaceDistances(), Smoothness(10))


@pytest.mark.parametrize("frames", [60, 1])
def test_a_constant_or_a_single_frame_has_no_value_and_says_so(frames):
    """0.1 has no exact mean: rounding must not pass for motion."""
    still = [np.full((frames, 2), 0.1)]
    found = {tag: row for metric in ALL for tag, row in rows(metric, still, still, still).items()}
    undefined = {
        "rpcc/exp",
        "rpcc/exp/clip",
        "rpcc/exp/dim",
        "tlcc/exp/peak",
        "sid/exp",
        "border_ratio/exp",
        "var_ratio/exp",
    }
    for tag in undefined | ({"fd/exp", "pfd/exp", "var/exp", "jerk/exp"} if frames == 1 else set()):
        assert np.isnan(found[tag].value), tag
        assert found[tag].note, tag


def test_a_clip_with_nan_is_left_out_and_counted(rng):
    x, y, g = ([rng.normal(size=(80, 2)) for _ in range(3)] for _ in range(3))
    tags = ("rpcc/exp/clip", "tlcc/exp/peak", "fd/exp", "pfd/exp", "var/exp")
    without = {tag: row for metric in ALL for tag, row in rows(metric, x[:2], y[:2], g[:2]).items()}
    g[2][7, 1] = np.nan
    found = {tag: row for metric in ALL for tag, row in rows(metric, x, y, g).items()}
    for tag in tags:
        assert_allclose(found[tag].value, without[tag].value, err_msg=tag)
        assert found[tag].n == 2, tag
    for tag in ("rpcc/exp", "var/exp/pooled", "jerk/exp", "border_ratio/exp"):
        assert np.isnan(found[tag].value), tag  # of all frames at once: never a number
