from __future__ import annotations

import pytest
import torch

from af.errors import UserError
from af.models.motion_space import MotionSpace, motion_statistics, pooled

D, K = 12, 4


@pytest.fixture
def motions(generator: torch.Generator) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Clips of uneven length in a K-dim subspace, every direction with its own mean and spread."""
    basis = torch.linalg.qr(torch.randn(D, K, generator=generator)).Q
    spread, mean = torch.tensor([10.0, 1.0, 0.3, 2.0]), torch.tensor([5.0, 0.0, -1.0, 30.0])
    clips = [(torch.randn(n, K, generator=generator) * spread + mean) @ basis.T for n in (500, 37, 1200)]
    return clips, basis


def fitted(kind: str, clips: list[torch.Tensor], basis: torch.Tensor) -> MotionSpace:
    space = MotionSpace(kind, D, K)
    space.fit(motion_statistics(iter(clips), basis))
    return space


def test_statistics_are_those_of_all_frames(motions) -> None:
    clips, basis = motions
    everything = torch.cat(clips).double() @ basis.double()
    got = motion_statistics(clips, basis)
    torch.testing.assert_close(got.mean.double(), everything.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.std.double(), everything.std(0, correction=0), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="no motion frames"):
        motion_statistics([], basis)


@pytest.mark.parametrize(("kind", "dim"), [("coefficients", K), ("whitened", K), ("latent", D), ("identity", D)])
def test_there_and_back(kind: str, dim: int, motions) -> None:
    clips, basis = motions
    space = fitted(kind, clips, basis)
    x = space.to_model(clips[0])
    assert space.dim == dim == x.shape[-1]
    torch.testing.assert_close(space.from_model(x), clips[0], atol=1e-4, rtol=1e-4)


def test_coefficients_are_standard(motions) -> None:
    clips, basis = motions
    x = torch.cat([fitted("coefficients", clips, basis).to_model(c) for c in clips])
    torch.testing.assert_close(x.mean(0), torch.zeros(K), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(K), atol=1e-3, rtol=0)


def test_whitened_coordinates_are_standard_and_uncorrelated_whatever_the_directions(motions, generator) -> None:
    clips, basis = motions
    x = torch.cat([fitted("whitened", clips, basis).to_model(c) for c in clips]).double()
    torch.testing.assert_close(x.T @ x / len(x), torch.eye(K, dtype=torch.float64), atol=1e-3, rtol=0)
    rotated = basis @ torch.linalg.qr(torch.randn(K, K, generator=generator)).Q
    again = fitted("whitened", clips, rotated).to_model(clips[0])
    torch.testing.assert_close(again, fitted("whitened", clips, basis).to_model(clips[0]), atol=1e-3, rtol=1e-3)


def test_a_mixture_has_the_statistics_of_its_frames(motions) -> None:
    clips, basis = motions
    parts, frames = [motion_statistics([c], basis) for c in clips], [len(c) for c in clips]
    for got, expected in zip(
        vars(pooled(parts, frames)).values(), vars(motion_statistics(clips, basis)).values(), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_latent_is_the_coefficients_mapped_back(motions) -> None:
    clips, basis = motions
    coefficients = fitted("coefficients", clips, basis).to_model(clips[1])
    torch.testing.assert_close(fitted("latent", clips, basis).to_model(clips[1]), coefficients @ basis.T)


def test_latent_forgets_what_is_outside_the_directions(motions, generator: torch.Generator) -> None:
    clips, basis = motions
    space = fitted("latent", clips, basis)
    x = space.to_model(clips[1])
    outside = torch.randn(x.shape, generator=generator)
    outside = outside - outside @ basis @ basis.T
    torch.testing.assert_close(space.from_model(x + outside), space.from_model(x), atol=1e-4, rtol=1e-4)


def test_a_direction_that_never_moves_is_not_blown_up(motions) -> None:
    clips, basis = motions
    still = [c - (c @ basis[:, 1:2]) @ basis[:, 1:2].T for c in clips]
    x = fitted("coefficients", still, basis).to_model(still[0])
    assert torch.isfinite(x).all()
    assert x[:, 1].abs().max() < 1e-3


def test_travels_in_the_checkpoint(motions) -> None:
    clips, basis = motions
    space, fresh = fitted("latent", clips, basis), MotionSpace("latent", D, K)
    with pytest.raises(RuntimeError, match="without statistics"):
        fresh.to_model(clips[0])
    with pytest.raises(RuntimeError, match="without statistics"):
        fresh.from_model(clips[0])
    fresh.load_state_dict(space.state_dict())
    assert torch.equal(fresh.to_model(clips[0]), space.to_model(clips[0]))


def test_wrong_values_are_named(motions) -> None:
    clips, basis = motions
    with pytest.raises(UserError, match=r"'pca'.*coefficients, whitened, latent, identity"):
        MotionSpace("pca", D, K)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"directions must be .* from 1 to 12, got 13"):
        MotionSpace("latent", D, 13)
    with pytest.raises(ValueError, match=r"\(12, 4\), expected \(12, 3\)"):
        MotionSpace("latent", D, 3).fit(motion_statistics(clips, basis))
    clips[0][0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        MotionSpace("latent", D, K).fit(motion_statistics(clips, basis))


@pytest.mark.parametrize("kind", ["coefficients", "latent"])
def test_coordinates_are_exact_under_autocast_where_means_are_many_deviations(kind: str, generator) -> None:
    """|mean| / std is 5: bf16 would be off by some percent of a deviation, the numbers the denoiser learns."""
    basis = torch.linalg.qr(torch.randn(D, K, generator=generator)).Q
    clips = [(torch.randn(400, K, generator=generator) + 5) @ basis.T]
    space, exact = fitted(kind, clips, basis), fitted(kind, clips, basis).double()
    with torch.autocast("cpu", torch.bfloat16):
        x = space.to_model(clips[0])
        motion = space.from_model(x)
    expected = exact.to_model(clips[0].double())
    # sums of D products, each of a rounding of the motion's size in deviations, mapped back by Q
    bound = 2 * D * torch.finfo(torch.float32).eps * (clips[0] @ basis).abs().max() / space.std.min()
    assert x.dtype == motion.dtype == torch.float32
    assert (x - expected).abs().max() < bound
    assert (motion - exact.from_model(expected)).abs().max() < bound * space.std.max()
