"""Grad-CAM against pytorch-grad-cam, live (-m parity): every family at its own size."""

import numpy as np
import pytest

pytest.importorskip("pytorch_grad_cam", reason="needs pip install '.[parity]'")

from inference.test_grad_cam import BOUND, our_grad_cam
from parity_networks import all_pairs

LIVE = (
    *("resnet18", "resnet50d", "test_resnet", "seresnet50", "resnext50_32x4d", "resnetblur50"),
    *("resnetv2_18", "resnetv2_50x1_bit", "torchvision/resnet18", "torchvision/alexnet"),
    *("torchvision/vgg11_bn", "resnet20, option A", "preact164", "wrn16_4"),
    *("resnet50, output_stride=8", "resnetv2_50, global_pool=avgmax", "resnet50, in_channels=1"),
)
# Its weights of a fixed standard deviation amplify the rounding of float32 to 1.2e-4.
IN_FLOAT64 = {"resnetv2_50x1_bit"}


@pytest.mark.parity
@pytest.mark.parametrize("label", LIVE)
def test_heat_maps_are_those_of_pytorch_grad_cam_today(label):
    import torch
    from grad_cam_torch import torch_grad_cam

    pair, classes = all_pairs()[label], (0, 1, 2, 3)
    dtype = "float64" if label in IN_FLOAT64 else "float32"
    expected = torch_grad_cam(pair, classes, getattr(torch, dtype))
    assert expected.max() > 0.9
    assert np.abs(our_grad_cam(pair, classes, dtype) - expected).max() < BOUND
