"""What arrives of a driving face is told apart from what does not, by a tracker of colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from af.data.index import Index
from af.errors import UserError
from af.evaluation.driven import GROUPS, arrives, driven_rows, stretches
from af.specs import FaceSpec
from af.types import Identity
from tests.toy_shards import write_split

NAMES = tuple(name for names in GROUPS.values() for name in names)


class Colours:
    """Reads the brightness of a vertical stripe for every parameter, and mean colours; a black image shows no face."""

    face_spec = FaceSpec(NAMES, len(NAMES) - 3, "colours")

    def __call__(self, frames):
        stripes = np.stack([s.mean((1, 2, 3)) for s in np.array_split(frames.astype(float), len(NAMES), 2)], 1)
        return np.where(frames.max((1, 2, 3))[:, None] > 0, stripes, np.nan), {"geometry": frames.mean((1, 2))}


class Copies(torch.nn.Module):
    """An autoencoder whose images are the driving frames (`share` 1), the portrait (0), or a mixture."""

    def __init__(self, share):
        super().__init__()
        self.share, self.direction_weight = share, torch.zeros(1)

    def identity(self, image, *, check):
        return Identity(image, ())

    def motion(self, image, *, check):
        return image.flatten(1)

    def decode(self, identity, motion):
        return torch.lerp(identity.code[:, None], motion.unflatten(2, identity.code.shape[1:]), self.share)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return Index.load(write_split(tmp_path_factory.mktemp("driven") / "test", [[24, 30]]))


def test_r2_of_movements_by_hand():
    true = [np.array([[0.0], [2.0]]), np.array([[10.0], [10.0], [np.nan]])]
    assert arrives(true, true)[0] == 1
    half = [np.array([[0.0], [1.0]]), np.array([[10.0], [10.0], [0.0]])]
    assert arrives(true, half)[0] == 1 - 1 / 2  # squared error 1; spread 1 + 1 in the first stretch, none in the other
    moved = [t + 5 for t in true]
    assert arrives(true, moved)[0] < 0
    assert arrives(true, moved, offsets=False)[0] == 1


def test_the_driving_frames_arrive_wholly_and_the_portrait_not_at_all(index):
    found = stretches(index, Colours(), frames=12)
    assert len(found) == 4
    assert [len(s.frames) for s in found] == [12] * 4
    perfect, still, half = ({r.tag: r for r in driven_rows(Copies(k), found, Colours())[0]} for k in (1.0, 0.0, 0.5))
    for name in GROUPS:
        assert perfect[f"driven/r2/{name}"].value == pytest.approx(1)
        assert perfect[f"driven/across/{name}"].value == pytest.approx(1)
        assert still[f"driven/r2/{name}"].value == pytest.approx(still[f"driven/r2/{name}"].null)
        for tag in ("moves", "across"):
            assert still[f"driven/{tag}/{name}"].value == pytest.approx(0)
        assert half[f"driven/across/{name}"].value == pytest.approx(0.75, abs=0.02)  # half the way: 1 - 1/4
    assert still["driven/psnr"].value == pytest.approx(still["driven/psnr"].null)
    assert perfect["driven/psnr"].value > half["driven/psnr"].value > still["driven/psnr"].value


def test_images_that_are_the_drivers_frames_show_the_driver_and_portraits_the_portraits_person(index):
    found = stretches(index, Colours(), frames=12)
    drivers, portraits = ({r.tag: r for r in driven_rows(Copies(k), found, Colours())[0]} for k in (1.0, 0.0))
    for name in ("rank1", "auc", "not_driver"):
        row = drivers[f"driven/identity/geometry/across/{name}"]
        assert row.value == row.null < row.ground_truth
        assert portraits[row.tag].value > row.value
    own = drivers["driven/identity/geometry/own/auc"]
    assert own.value == own.ground_truth
    assert "driven/identity/geometry/own/not_driver" not in drivers


def test_one_person_is_told_from_others_who_drive_but_are_not_driven(index):
    everybody = stretches(index, Colours(), frames=12)
    me, others = everybody[:1], everybody[1:]
    alone = [row.tag for row in driven_rows(Copies(0.0), me, Colours())[0]]
    assert not any(tag.startswith("driven/identity") for tag in alone)
    for share in (0.0, 1.0):
        rows, columns = driven_rows(Copies(share), me, Colours(), others=others)
        found = {row.tag: row for row in rows}
        assert all(row.n == 1 for row in rows)
        assert [len(column) for column in columns] == [1] * 5
        assert any((frame == columns[3][0]).all() for frame in others[0].frames)
        for name in ("rank1", "not_driver"):
            row = found[f"driven/identity/geometry/across/{name}"]
            assert row.value == (row.null if share else 1)
            assert row.null < 1


def test_short_videos_keep_a_third_for_the_portrait(index):
    assert [len(s.frames) for s in stretches(index, Colours(), frames=100)] == [16, 16, 20, 20]


def test_the_sheet_shows_driving_frames_beside_their_images(index):
    columns = driven_rows(Copies(1.0), stretches(index, Colours(), frames=12), Colours())[1]
    assert len(columns) == 5
    np.testing.assert_array_equal(columns[1], columns[2])
    np.testing.assert_array_equal(columns[3], columns[4])


def test_another_tracker_and_videos_without_faces_are_named(index):
    class Toy(Colours):
        face_spec = FaceSpec(("smile",), 1, "toy")

    class Blind(Colours):
        def __call__(self, frames):
            return np.full((len(frames), len(NAMES)), np.nan), {}

    with pytest.raises(UserError, match="toy does not read jawOpen"):
        stretches(index, Toy())
    with pytest.raises(UserError, match="finds no face"):
        stretches(index, Blind())
