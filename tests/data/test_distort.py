"""Distortions: the whole batch at once does what TensorFlow does to one image after the other."""

import math

import numpy as np
import pytest
import torch

from evener.data.distort import central, crop, distorted, shifted, standardized

IMAGES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def chance(*columns):
    return torch.tensor(columns, dtype=torch.float64).T


def one_after_the_other(image, top, left, flip, brightness, contrast):
    """TensorFlow's definitions, in numpy, float64."""
    image = image.numpy().astype(np.float64)[:, top : top + 24, left : left + 24]
    image = image[:, :, ::-1] if flip else image
    image = image + brightness
    mean = image.mean(axis=(1, 2), keepdims=True)
    image = (image - mean) * contrast + mean
    return (image - image.mean()) / max(image.std(), 1 / math.sqrt(image.size))


def test_crop_flip_brightness_contrast_and_standardization_in_this_order():
    uniform = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    made = distorted(IMAGES, uniform)

    assert made.shape == (6, 3, 24, 24)
    for image, u, found in zip(IMAGES, uniform.tolist(), made, strict=True):
        where = int(u[0] * 9), int(u[1] * 9)
        expected = one_after_the_other(image, *where, u[2] < 0.5, u[3] * 126 - 63, 0.2 + 1.6 * u[4])
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_every_crop_can_come_and_none_beyond_the_image():
    ramp = torch.arange(32, dtype=torch.uint8)
    images = (ramp[:, None] * 8 + ramp * 0).expand(9, 3, 32, 32)
    tops = chance([k / 9 + 1e-9 for k in range(9)], [0.0] * 9, [0.9] * 9, [0.5] * 9, [0.5] * 9)
    made = distorted(images, tops)
    # rows of a ramp: after standardization all crops look alike, so compare before it
    corner = (tops[:, 0] * 9).long()
    cut = crop(images, corner, corner * 0, flip=torch.zeros(9, dtype=torch.bool), size=24)

    assert cut[:, 0, 0, 0].tolist() == [8 * top for top in range(9)]
    assert cut[:, 0, -1, 0].tolist() == [8 * (top + 23) for top in range(9)]
    assert torch.isfinite(made).all()


def test_a_uniform_image_becomes_zeros_not_nan():
    flat = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    assert central(flat).tolist() == torch.zeros(2, 3, 24, 24).tolist()
    assert distorted(flat, torch.full((2, 5), 0.3)).abs().max() < 1e-3


def test_the_deviation_has_a_floor_of_one_over_the_root_of_the_values():
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, 0, 0] = 1e-3
    assert standardized(image)[0, 0, 0, 0].item() == pytest.approx((1e-3 - 1e-3 / 48) * math.sqrt(48), rel=1e-4)


def test_evaluation_takes_the_middle():
    expected = IMAGES[:, :, 4:28, 4:28].double()
    mean, std = expected.mean((1, 2, 3), keepdim=True), expected.std((1, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(central(IMAGES).double(), (expected - mean) / std, atol=1e-5, rtol=1e-5)


def test_shifts_reflect_at_the_edge_as_padding_would():
    uniform = chance([0.0, 0.999, 0.5, 0.2, 0.8, 0.5], [0.0, 0.999, 0.5, 0.9, 0.1, 0.5], [0.7, 0.7, 0.7, 0.2, 0.2, 0.2])
    made = shifted(IMAGES, uniform)
    padded = torch.nn.functional.pad(IMAGES.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)

    for image, u, found in zip(padded, uniform.tolist(), made, strict=True):
        top, left = int(u[0] * 9), int(u[1] * 9)
        cut = image[:, top : top + 32, left : left + 32]
        assert torch.equal(found, cut.flip(2) if u[2] < 0.5 else cut)


def test_the_middle_shift_without_flip_changes_nothing():
    assert torch.equal(shifted(IMAGES, chance([0.5] * 6, [0.5] * 6, [0.9] * 6)), IMAGES)
