"""Images distorted at random, a whole batch at once. What is random comes in as numbers, so nothing here is."""

from __future__ import annotations

import torch
from torch import Tensor

#: Random numbers that a sample needs, for each of the two ways.
DISTORTED, SHIFTED = 5, 3


def distorted(images: Tensor, uniform: Tensor, *, size: int = 24) -> Tensor:
    """TensorFlow's `distorted_inputs` for CIFAR-10: crop, flip, brightness, contrast, standardization, in this order.

    Brightness adds at most 63 of 255 either way and is not clipped; contrast scales the distance of each pixel from its
    channel's mean in the image by 0.2 to 1.8.

    Args:
        images: uint8 [B, C, H, W].
        uniform: float [B, 5], each 0 <= u < 1: top, left, flip, brightness, contrast.
        size: of the crop, which may lie anywhere in the image.

    Returns:
        float32 [B, C, size, size], of mean 0 and standard deviation 1 in each image.
    """
    room = torch.tensor([images.shape[2] - size + 1, images.shape[3] - size + 1])
    corner = (uniform[:, :2] * room).long()
    cut = crop(images, corner[:, 0], corner[:, 1], flip=uniform[:, 2] < 0.5, size=size).float()
    brightness, contrast = (
        column.float().view(-1, 1, 1, 1) for column in (uniform[:, 3] * 126 - 63, 0.2 + 1.6 * uniform[:, 4])
    )
    cut += brightness
    mean = cut.mean((2, 3), keepdim=True)
    return standardized(cut.sub_(mean).mul_(contrast).add_(mean))


def central(images: Tensor, *, size: int = 24) -> Tensor:
    """The middle of uint8 [B, C, H, W] as float32 [B, C, size, size], standardized: what is evaluated."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return standardized(images[:, :, top : top + size, left : left + size].float())


def standardized(images: Tensor) -> Tensor:
    """Each image of float32 [B, C, H, W] with mean 0 and standard deviation 1; in place.

    As TensorFlow's `per_image_standardization`: divided by max(deviation, 1/sqrt(N)) with N values in an image, so
    that a uniform image becomes zeros instead of NaN.
    """
    flat = images.view(len(images), -1)
    deviation, mean = torch.std_mean(flat, 1, correction=0, keepdim=True)
    flat.sub_(mean).div_(deviation.clamp_(min=flat.shape[1] ** -0.5))
    return images


def shifted(images: Tensor, uniform: Tensor, *, by: int = 4) -> Tensor:
    """Moved by up to `by` pixels each way, the edge mirrored, and flipped half of the time.

    Args:
        images: uint8 [B, C, H, W].
        uniform: float [B, 3], each 0 <= u < 1: top, left, flip.

    Returns:
        uint8 [B, C, H, W].
    """
    corner = (uniform[:, :2] * (2 * by + 1)).long() - by
    return crop(images, corner[:, 0], corner[:, 1], flip=uniform[:, 2] < 0.5, size=images.shape[2])


def crop(images: Tensor, top: Tensor, left: Tensor, *, flip: Tensor, size: int) -> Tensor:
    """A square out of each image, mirrored left to right where `flip`; beyond the edge the image is reflected.

    One gather for the whole batch: flips and reflections are only other column and row numbers.

    Args:
        images: [B, C, H, W].
        top, left: int64 [B], the first row and column; may lie outside by less than the image's size.
        flip: bool [B].
        size: of the square, in pixels.
    """
    steps = torch.arange(size)
    rows = _reflected(top[:, None] + steps, images.shape[2])
    columns = left[:, None] + torch.where(flip[:, None], steps.flip(0), steps)
    columns = _reflected(columns, images.shape[3])
    places = (rows[:, :, None] * images.shape[3] + columns[:, None, :]).view(len(images), 1, size * size)
    flat = images.flatten(2)
    return flat.gather(2, places.expand(-1, images.shape[1], -1)).view(*images.shape[:2], size, size)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places outside 0..size-1 mirrored at the first or last one, which is not repeated."""
    return (size - 1) - ((size - 1) - places.abs()).abs()
