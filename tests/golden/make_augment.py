"""Writes tests/golden/augment.npz: what torchvision's operations on images give for one small image.

    python tests/golden/make_augment.py

Needs the extra `parity`. The file holds what torchvision 0.29.1 gave on uint8 tensors.
"""

import pathlib

import numpy as np
import torch
import torchvision.transforms.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import autoaugment as policies

FILE = pathlib.Path(__file__).with_name("augment.npz")
HUES = (-0.5, -0.2, 0.05, 0.3)
BIN = {"randaugment": 9, "trivialaugment": 30}


def image():
    """A small image, smooth, with some noise, and with other levels in every channel."""
    y, x = np.indices((9, 9))
    noise = np.random.default_rng(0).integers(0, 30, (9, 9, 3))
    return (np.stack([20 * x, 12 * (x + y), 150 - 9 * y], -1) + noise).astype(np.uint8)


def space(policy, height, width):
    """Returns the table: name -> (magnitudes, signed)."""
    if policy == "trivialaugment":
        return policies.TrivialAugmentWide()._augmentation_space(31)
    return policies.RandAugment()._augmentation_space(31, (height, width))


def on_tensor(function, image, *arguments):
    result = function(torch.from_numpy(image).permute(2, 0, 1), *arguments)
    return result.permute(1, 2, 0).numpy()


def operation(image, name, magnitude):
    """What torchvision's policies do to uint8 [H, W, 3]."""
    nearest = InterpolationMode.NEAREST
    return on_tensor(policies._apply_op, image, name, float(magnitude), nearest, None)


def hue(image, turn):
    return on_tensor(F.adjust_hue, image, float(turn))


def main():
    arrays = {"image": image()}
    for policy, number in BIN.items():
        table = space(policy, 9, 9)
        bins = [np.broadcast_to(values.numpy(), 31) for values, _ in table.values()]
        arrays[f"{policy}/names"] = np.array(list(table))
        arrays[f"{policy}/magnitudes"] = np.stack(bins).astype(np.float32)
        arrays[policy] = np.stack(
            [
                operation(image(), name, -values[number] if signed and negative else values[number])
                for (name, (_, signed)), values in zip(table.items(), bins, strict=True)
                for negative in (False, True)
            ]
        ).reshape(len(table), 2, 9, 9, 3)
    arrays["hue"] = np.stack([hue(image(), turn) for turn in HUES])
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
