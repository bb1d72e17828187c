"""8-bit images and the models' images."""

import numpy as np
import torch

from af.images import image_array, image_tensor, to_bytes, to_float


def test_images_go_there_and_back():
    every = np.arange(256, dtype=np.uint8).reshape(1, 4, 64, 1).repeat(3, 3)
    images = image_tensor(every)
    assert images.shape == (1, 3, 4, 64)
    assert (images.min(), images.max()) == (-1, 1)
    assert np.array_equal(image_array(images), every)


def test_views_that_torch_does_not_take_are_read():
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    frames.setflags(write=False)
    assert image_tensor(frames[..., ::-1]).equal(image_tensor(frames).flip(1))


def test_bytes_are_clamped_and_rounded():
    values = torch.tensor([-3.0, -1.0, -1 + 0.6 / 127.5, 0.0, 1.0, 1.01], requires_grad=True)
    assert to_bytes(values).tolist() == [0, 0, 1, 128, 255, 255]
    assert values[0] == -3  # left as it was


def test_floats_do_not_change_the_bytes():
    values = torch.tensor([0, 255], dtype=torch.uint8)
    assert to_float(values).tolist() == [-1, 1]
    assert values.tolist() == [0, 255]
