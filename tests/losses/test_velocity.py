from __future__ import annotations

import pytest
import torch

from af.errors import UserError
from af.losses.velocity import VelocityLoss, valid_mean

PREDICTED = torch.tensor([[[1.0, -1.0], [0.0, 4.0], [9.0, 9.0]]])
TARGET = torch.tensor([[[0.0, 1.0], [0.5, 1.0], [0.0, 0.0]]])  # errors: (1, -2), (-0.5, 3), (9, 9)
VALID = torch.tensor([[True, True, False]])


@pytest.mark.parametrize(
    ("kind", "frames"),
    [
        ("l1", [1.5, 1.75, 9.0]),
        ("l2", [2.5, 4.625, 81.0]),
        ("huber", [(0.5 + 1.5) / 2, (0.125 + 2.5) / 2, 8.5]),  # delta 1: e²/2 up to 1, |e| − 1/2 above
    ],
)
def test_by_hand(kind: str, frames: list[float]) -> None:
    errors = VelocityLoss(kind)(PREDICTED, TARGET)
    torch.testing.assert_close(errors, torch.tensor([frames]))
    torch.testing.assert_close(valid_mean(errors, VALID), torch.tensor((frames[0] + frames[1]) / 2))
    torch.testing.assert_close(valid_mean(errors), torch.tensor(sum(frames) / 3))


def test_huber_threshold() -> None:
    error = VelocityLoss("huber", delta=2.0)(torch.tensor([[[3.0]]]), torch.zeros(1, 1, 1))
    torch.testing.assert_close(error, torch.tensor([[4.0]]))  # 2·(3 − 1)


def test_invalid_frames_may_hold_anything() -> None:
    predicted = PREDICTED.clone().requires_grad_()
    target = TARGET.clone()
    target[:, 2] = float("nan")
    valid_mean(VelocityLoss()(predicted, target), VALID).backward()
    assert torch.isfinite(predicted.grad[:, :2]).all()
    assert (predicted.grad[:, :2] != 0).all()


def test_no_valid_frame_is_zero() -> None:
    errors = torch.ones(1, 3, requires_grad=True)
    loss = valid_mean(errors, torch.zeros(1, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert (errors.grad == 0).all()


def test_unknown_kind_names_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"'l3'.*l1, l2, huber"):
        VelocityLoss("l3")
