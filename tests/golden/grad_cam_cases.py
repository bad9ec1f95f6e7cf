"""The networks whose Grad-CAM the golden file holds, and the sampling of its maps."""

from golden.cases import V2, small
from golden.pairs import Pair

CLASSES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)  # of ten images
# Pixels between the stored values of a map: an odd number meets most phases of the interpolation.
STRIDE = 5
SIZE = {"size": 96}

GRAD_CAMS: dict[str, Pair] = {
    "basic": small("resnet18", layers=(1, 1, 1, 1), **SIZE),
    "bottleneck": small("resnet50", layers=(1, 1, 1, 1), **SIZE),
    "pre-activation": small("resnetv2_18", layers=(1, 1, 1, 1), stem=V2, **SIZE),
    "grey, output_stride=8": small(
        "seresnet50",
        layers=(1, 1, 1, 1),
        torch={"output_stride": 8, "in_chans": 1},
        ours={"output_stride": 8, "in_channels": 1},
        channels=1,
    ),
    "plain CIFAR shortcut": Pair("cifar_resnet", {"shortcut": "pad"}, "resnet20", {}, 32),
}
