"""The networks that the golden file holds: rows of data, read by make.py and by parity/test_parity.py."""

from typing import Any

from golden.pairs import Pair


def small(
    name: str,
    *,
    layers: tuple[int, ...] = (1, 2, 1, 1),
    widths: tuple[int, ...] = (8, 16, 24, 32),
    stem: dict[str, int] | None = None,
    torch: dict[str, Any] | None = None,
    ours: dict[str, Any] | None = None,
    size: int = 32,
    channels: int = 3,
) -> Pair:
    """Makes a pair of the named network with few and narrow blocks and ten classes.

    Args:
      name: in timm, and here.
      layers: blocks per stage.
      widths: channels of the 3x3 convolutions of each stage.
      stem: timm's option for the width of the stem; None where timm has it fixed at 64.
      torch: more options there.
      ours: more options here.
      size: of the images.
      channels: of the images.
    """
    ((option, width),) = (stem or {"": 64}).items()
    out = {
        "stem_width": 2 * width if option == "stem_width" else width
    }  # timm's is of the first conv
    if name.startswith("resnetv2"):  # timm names the channels that blocks put out
        factor = 1 if "_18" in name or "_34" in name else 4
        theirs = tuple(factor * w for w in widths)
    else:
        theirs = widths
    return Pair(
        name,
        {"layers": layers, "channels": theirs, "num_classes": 10, **(stem or {}), **(torch or {})},
        name,
        {"depths": layers, "widths": widths, "num_classes": 10, **out, **(ours or {})},
        size,
        channels,
    )


DEEP = {"stem_width": 8}
V2 = {"stem_chs": 16}
GROUPS = (32, 32, 64, 64)  # group normalisation needs multiples of 32

GOLDENS: dict[str, Pair] = {
    "basic": small("resnet18"),
    "basic, d": small("resnet18d", stem=DEEP),
    "bottleneck": small("resnet50"),
    "bottleneck, 45 px": small("resnet50", size=45),
    "c": small("resnet50c", stem=DEEP),
    "d, 45 px": small("resnet50d", stem=DEEP, size=45),
    "s": small("resnet50s", stem={"stem_width": 16}),
    "t": small("resnet50t", stem=DEEP),
    "mixed blocks": Pair("test_resnet", {"num_classes": 10}, "test_resnet", {"num_classes": 10}),
    "resnext": small("resnext50_32x4d", widths=(16, 16, 32, 32)),
    "wide": small("wide_resnet50_2"),
    "squeeze and excitation": small("seresnet50"),
    "senet": small("senet154", stem={"stem_width": 16}, widths=(32, 32, 64, 64), size=48),
    "channel attention": small("ecaresnet26t", stem=DEEP),
    "channel attention, 7x7 stem": small("ecaresnetlight"),
    "blur": small("resnetblur50"),
    "blur, basic": small("resnetblur18"),
    "average": small("resnetaa50d", stem=DEEP),
    "rs": small("resnetrs50", stem=DEEP, size=48),
    "group": small("resnet50_gn", widths=GROUPS),
    "preactivation": small("resnetv2_50", stem=V2),
    "preactivation, basic, d": small("resnetv2_18d", stem=V2, size=48),
    "preactivation, t": small("resnetv2_50t", stem=V2),
    "preactivation, d, group": small("resnetv2_50d_gn", widths=GROUPS, stem={"stem_chs": 64}),
    "evonorm": small("resnetv2_50d_evos", widths=GROUPS, stem={"stem_chs": 64}),
    "filter response": small("resnetv2_50d_frn", stem=V2),
    "big transfer": small("resnetv2_50x1_bit", widths=GROUPS, stem={"stem_chs": 64})._replace(
        torch="bit"
    ),
    "stride 8": small("resnet50", size=64, torch={"output_stride": 8}, ours={"output_stride": 8}),
    "stride 16, d": small(
        "resnet50d", stem=DEEP, size=64, torch={"output_stride": 16}, ours={"output_stride": 16}
    ),
    "stride 8, preactivation, d": small(
        "resnetv2_50d", stem=V2, size=64, torch={"output_stride": 8}, ours={"output_stride": 8}
    ),
    "stride 8, senet": small(
        "senet154",
        stem={"stem_width": 16},
        widths=(32, 32, 64, 96),
        size=64,
        torch={"output_stride": 8},
        ours={"output_stride": 8},
    ),
    "one channel, maximum": small(
        "resnet18",
        channels=1,
        torch={"in_chans": 1, "global_pool": "max"},
        ours={"in_channels": 1, "global_pool": "max"},
    ),
    "four channels, both pools": small(
        "resnetv2_50",
        stem=V2,
        channels=4,
        torch={"in_chans": 4, "global_pool": "avgmax"},
        ours={"in_channels": 4, "global_pool": "avgmax"},
    ),
    "cifar, option A": Pair("cifar_resnet", {"shortcut": "pad"}, "resnet20", {}, 32),
    "cifar, option B": Pair("cifar_resnet", {}, "resnet20", {"shortcut": "projection"}, 32),
    "cifar, wide": Pair("cifar_wide", {}, "wrn16_4", {}, 32),
    "alexnet": Pair("torchvision/alexnet", {"num_classes": 10}, "alexnet", {"num_classes": 10}, 64),
}

# Of these the file also holds the loss in training mode and the norm of every gradient.
WITH_GRADIENTS = (
    "d, 45 px",
    "preactivation, basic, d",
    "evonorm",
    "filter response",
    "big transfer",
    "cifar, option A",
)
