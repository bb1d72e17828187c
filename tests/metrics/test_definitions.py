"""Each metric on inputs whose value can be worked out by hand, and against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.linalg import sqrtm

from af.metrics.arrays import UndefinedMetricWarning
from af.metrics.coupling import pcc, rpcc, tlcc
from af.metrics.diversity import sid, var_ratio, variance
from af.metrics.frechet import fd, frechet_distance, kernel_distance, pfd
from af.metrics.latency import latency, real_time_factor
from af.metrics.likeness import csim, psnr, ssim
from af.metrics.reaction import reaction_gain
from af.metrics.smoothness import border_ratio, drift, jerk


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


X = [np.array([[0.0], [1.0], [2.0]]), np.array([[3.0], [1.0]])]
Y = [np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [3.0]])]
G = [np.array([[1.0], [0.0], [0.0]]), np.array([[3.0], [0.0]])]


def test_rpcc_by_hand():
    # clip 1: r(x, y) = 1, r(x, ŷ) = -√3/2; clip 2: r = -1, r = 1
    assert_allclose(rpcc(X, Y, G, "clip"), ((1 + np.sqrt(3) / 2) + 2) / 2)
    x, y, g = (np.concatenate(c)[:, 0] for c in (X, Y, G))
    expected = abs(np.corrcoef(x, y)[0, 1] - np.corrcoef(x, g)[0, 1])
    assert_allclose(rpcc(X, Y, G), expected)
    assert_allclose(rpcc(X, Y, G, "dim"), expected)  # one dimension: the same
    assert_allclose(pcc(X, Y), np.corrcoef(x, y)[0, 1])


def test_rpcc_poolings_differ_where_they_should(rng):
    clips = [rng.normal(size=(30, 3)) * [1, 5, 9] + [0, 10, -4] for _ in range(4)]
    others = [rng.normal(size=(30, 3)) for _ in range(4)]
    flat = [np.concatenate([c.ravel() for c in side]) for side in (clips, others)]
    assert_allclose(pcc(clips, others), np.corrcoef(*flat)[0, 1])
    dims = [np.corrcoef(np.concatenate(clips)[:, d], np.concatenate(others)[:, d])[0, 1] for d in range(3)]
    assert_allclose(pcc(clips, others, "dim"), np.mean(dims))
    with pytest.raises(ValueError, match="pooling"):
        pcc(clips, others, "frame")  # type: ignore[arg-type]


def test_perfect_copy_is_zero_and_tensors_equal_arrays(rng):
    user, true = ([rng.normal(size=(n, 4)) for n in (20, 31)] for _ in range(2))
    assert rpcc(user, true, true) == 0
    assert_allclose(pfd(user, true, true), 0, atol=1e-9)
    assert_allclose(fd(true, true), 0, atol=1e-9)
    tensors = [[torch.from_numpy(c) for c in side] for side in (user, true)]
    assert rpcc(*tensors, tensors[0]) == rpcc(user, true, user)


DEFINITIONS = {
    "rpcc": lambda x, y, g: rpcc(x, y, g),
    "rpcc clip": lambda x, y, g: rpcc(x, y, g, pooling="clip"),
    "rpcc dim": lambda x, y, g: rpcc(x, y, g, pooling="dim"),
    "sid": lambda x, y, g: sid(y, g, clusters=4),
    "variance": lambda x, y, g: variance(g),
    "variance pooled": lambda x, y, g: variance(g, pooling="pooled"),
    "var_ratio": lambda x, y, g: var_ratio(y, g),
    "fd": lambda x, y, g: fd(y, g),
    "pfd": lambda x, y, g: pfd(x, y, g),
    "tlcc": lambda x, y, g: tlcc(x, g, max_lag=20).correlation,
    "jerk": lambda x, y, g: jerk(g),
    "border_ratio": lambda x, y, g: border_ratio(g, block=10),
    "reaction_gain": lambda x, y, g: reaction_gain(x, y, g, y, g, ["a", "b", "c"], lags=5, shifts=3).value,
}


@pytest.mark.parametrize("call", DEFINITIONS.values(), ids=DEFINITIONS)
def test_every_kind_of_array_gives_the_same_value(rng, call):
    sides = [[rng.normal(size=(n, 3)).astype(np.float32) for n in (210, 225, 240)] for _ in range(3)]
    expected = call(*sides)
    assert np.isfinite(expected).all()
    # clips of unequal lengths, float32 values: float64 arithmetic whatever the container
    assert_allclose(call(*([c.astype(np.float64) for c in side] for side in sides)), expected, rtol=1e-12)
    assert_allclose(call(*([torch.from_numpy(c) for c in side] for side in sides)), expected, rtol=1e-12)
    graph = [[torch.from_numpy(c).double().requires_grad_() for c in side] for side in sides]
    assert_allclose(call(*graph), expected, rtol=1e-12)
    halves = [[torch.from_numpy(c).bfloat16() for c in side] for side in sides]
    assert_allclose(call(*halves), call(*([c.float() for c in side] for side in halves)), rtol=1e-12)


def test_one_array_is_one_clip_and_three_axes_are_several(rng):
    x, y, g = rng.normal(size=(3, 4, 60, 2))
    assert rpcc(x[0], y[0], g[0]) == rpcc([x[0]], [y[0]], [g[0]])
    assert rpcc(x, y, g, "clip") == rpcc(list(x), list(y), list(g), "clip")
    assert variance(torch.from_numpy(g)) == variance(list(g))


@pytest.mark.parametrize("delay", [-7, 0, 11, 49])
def test_tlcc_finds_the_delay(rng, delay):
    user = [rng.normal(size=(200, 3)) for _ in range(3)]
    avatar = [np.roll(c, delay, axis=0) for c in user]
    curve = tlcc(user, avatar)
    assert curve.lag == delay
    assert_allclose(curve.peak, 1.0)
    assert curve.lags[0] == -49
    assert curve.lags[-1] == 49


def test_tlcc_equals_plain_pearson_at_every_lag(rng):
    user, avatar = rng.normal(size=(60, 2)) + 100, rng.normal(size=(60, 2)).cumsum(0) - 1e3
    curve = tlcc([user], [avatar], max_lag=9)
    for lag, value in zip(curve.lags, curve.correlation, strict=True):
        first, second = (user[: 60 - lag], avatar[lag:]) if lag >= 0 else (user[-lag:], avatar[: 60 + lag])
        expected = np.mean([np.corrcoef(first[:, d], second[:, d])[0, 1] for d in range(2)])
        assert_allclose(value, expected, rtol=1e-9)


def test_sid_by_hand():
    # two clusters at 0 and 10: three quarters of the generated frames in one of them
    true = [np.array([[0.0], [0.1], [10.0], [10.1]])]
    generated = [np.array([[0.0], [1.0]]), np.array([[2.0], [9.0]])]
    assert_allclose(sid(true, generated, 2), -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert_allclose(sid(true, true, 2), 1.0)


def test_sid_equals_scikit_learn(rng):
    from sklearn.cluster import KMeans

    true, generated = ([rng.normal(size=(n, 5)) * s for n in (70, 90)] for s in (1.0, 0.5))
    model = KMeans(7, random_state=0, n_init="auto").fit(np.concatenate(true))
    p = np.bincount(model.predict(np.concatenate(generated)), minlength=7) / 160
    assert_allclose(sid(true, generated, 7), -(p[p > 0] * np.log2(p[p > 0])).sum())


def test_variance_by_hand():
    clips = [np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[0.0, 0.0], [4.0, 2.0]])]
    assert_allclose(variance(clips), ((1 + 0) / 2 + (4 + 1) / 2) / 2)
    assert_allclose(variance(clips, "pooled"), np.var([0, 1, 2, 1, 0, 0, 4, 2]))
    half = [c / 2 for c in clips]
    assert_allclose(var_ratio(clips, half), [0.25, 0.25])


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
    assert_allclose(fd(true, generated), ((4 - 1) ** 2 + (2 - 1) ** 2 + 0) / 2)
    # the user adds a dim that both sides share
    assert_allclose(pfd([np.zeros((3, 1)), np.ones((2, 1))], true, generated), (9 + 1) / 2)


def test_frechet_of_singular_covariances_is_finite_and_symmetric(rng):
    first, second = rng.normal(size=(8, 20)), rng.normal(size=(5, 20))  # fewer frames than dims
    forth, back = fd([first], [second]), fd([second], [first])
    assert np.isfinite(forth)
    assert_allclose(forth, back, rtol=1e-9)
    assert_allclose(fd([first], [first + 3.0]), 20 * 9.0, rtol=1e-9)  # a shift alone


def test_pfd_sees_broken_coupling_that_fd_cannot(rng):
    user = [rng.normal(size=(400, 2)) for _ in range(3)]
    true = [u + 0.1 * rng.normal(size=u.shape) for u in user]
    shuffled = [rng.permutation(t) for t in true]
    assert_allclose(fd(true, shuffled), 0, atol=1e-9)
    assert pfd(user, true, shuffled) > 0.5


def test_kernel_distance_is_unbiased_and_sees_a_shift(rng):
    first, second = rng.normal(size=(2, 300, 6))
    assert abs(kernel_distance(first, second)[0]) < 0.05
    assert kernel_distance(first, second + 1)[0] > 0.5
    value, spread = kernel_distance(first, second + 1, subset=100, subsets=20)
    assert spread > 0
    assert_allclose(value, kernel_distance(first, second + 1)[0], rtol=0.2)


def test_border_ratio_by_hand():
    # second differences: 1 everywhere, 3 in the two that touch the border between frames 4 and 5
    second = np.ones(8)
    second[[3, 4]] = 3.0
    series = np.concatenate([[0.0, 0.0], np.cumsum(np.cumsum(second))])
    assert_allclose(border_ratio([series], block=5), 3.0)
    assert_allclose(border_ratio([np.arange(30.0) ** 2], block=5), 1.0)  # constant bend: seamless
    assert_allclose(border_ratio([series], block=5, first=9), 1.0, atol=0.6)  # the border is elsewhere


def test_jerk_by_hand():
    t = np.arange(10.0) / 25
    assert_allclose(jerk([np.stack([t**3, 0 * t], 1)]), 6.0)
    assert_allclose(jerk([np.stack([t**3, t**3], 1)]), 6.0 * np.sqrt(2))


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

    first = torch.from_numpy(rng.random((2, 3, 20, 24))).float()
    second = (first + 0.1 * torch.from_numpy(rng.normal(size=first.shape)).float()).clamp(0, 1)
    expected = structural_similarity_index_measure(second.double(), first.double(), data_range=1.0)
    assert_allclose(ssim(second, first, 0.0, 1.0), float(expected), rtol=1e-5)


def test_latency_by_hand():
    result = latency(10, [20.0, 40.0])
    assert_allclose([result.mean_ms, result.worst_ms], [5.5 * 40 + 30, 10 * 40 + 40])
    assert real_time_factor({"motion": 1.0, "decode": 1.5}, 125) == {
        "speed/rtf/motion": 0.2,
        "speed/rtf/decode": 0.3,
        "speed/rtf": 0.5,
    }


CONSTANT = [np.full((60, 2), 0.1)]  # 0.1 has no exact mean: rounding must not pass for motion
ONE_FRAME = [np.ones((1, 2))]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("pcc", lambda c: pcc(c, c)),
        ("rpcc", lambda c: rpcc(c, c, c)),
        ("rpcc", lambda c: rpcc(c, c, c, "clip")),
        ("tlcc", lambda c: tlcc(c, c).peak),
        ("sid", lambda c: sid(c, c, 4)),
        ("border_ratio", lambda c: border_ratio(c, 10)),
    ],
)
@pytest.mark.parametrize("clips", [CONSTANT, ONE_FRAME], ids=["constant", "one frame"])
def test_undefined_is_nan_with_a_reason(name, call, clips):
    with pytest.warns(UndefinedMetricWarning, match=name):
        assert np.isnan(call(clips))


@pytest.mark.parametrize("call", [lambda c: fd(c, c), lambda c: pfd(c, c, c), variance, jerk])
def test_one_frame_has_no_value(call):
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(call(ONE_FRAME))


@pytest.mark.parametrize(("name", "call"), list(DEFINITIONS.items())[:-1])
def test_no_clips_have_no_value(name, call):
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(call([], [], [])).all()


@pytest.mark.parametrize("name", ["rpcc clip", "variance", "fd", "pfd", "tlcc"])
def test_a_clip_with_nan_is_left_out_and_counted(rng, name):
    x, y, g = ([rng.normal(size=(80, 2)) for _ in range(3)] for _ in range(3))
    expected = DEFINITIONS[name](x[:2], y[:2], g[:2])
    g[2][7, 1] = np.nan
    with pytest.warns(UndefinedMetricWarning, match="1 of 3 clips left out"):
        assert_allclose(DEFINITIONS[name](x, y, g), expected)


def test_nan_in_is_nan_out_never_a_number(rng):
    bad = [np.full((60, 2), np.nan)]
    for name in ("rpcc", "rpcc dim", "variance pooled", "sid", "jerk", "border_ratio"):
        with pytest.warns(UndefinedMetricWarning):
            assert np.isnan(DEFINITIONS[name]([rng.normal(size=(60, 2))], [rng.normal(size=(60, 2))], bad)), name
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(rpcc(bad, bad, bad))
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(sid(CONSTANT, bad, 1))


def test_shapes_that_do_not_match_name_the_clip():
    with pytest.raises(ValueError, match=r"generated\[1\] has 2 frames where user\[1\] has 3"):
        rpcc([np.ones((2, 1)), np.ones((3, 1))], [np.ones((2, 1)), np.ones((3, 1))], [np.ones((2, 1))] * 2)
    with pytest.raises(ValueError, match=r"clips\[1\] has 2 dims"):
        variance([np.ones((2, 1)), np.ones((3, 2))])
    three, two = [np.ones((9, 3))], [np.ones((9, 2))]
    for call in (lambda: rpcc(three, three, two), lambda: fd(three, two), lambda: pfd(two, three, two),
                 lambda: sid(three, two, 2), lambda: var_ratio(three, two)):  # fmt: skip
        with pytest.raises(ValueError, match="generated has 2 dims where"):
            call()
    with pytest.raises(ValueError, match="avatar has 2 dims where user has 3"):
        tlcc(three, two)
    with pytest.raises(ValueError, match="generated has 2 clips where true has 1"):
        fd(three, three * 2)
    with pytest.raises(ValueError, match=r"user\[0\] must be \(frames, dims\), got shape \(2, 2, 2\)"):
        tlcc([np.ones((2, 2, 2))], three)
    assert fd([rng_clip(9)], [rng_clip(12)]) > 0  # distributions need no equal lengths


def rng_clip(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).normal(size=(frames, 2))
