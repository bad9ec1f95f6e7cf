"""The residual networks by name, each as one row of data: the fields of `ResNet` that differ from the defaults.

If timm 1.0 has a network, the name here is timm's. torchvision's names are among these.
"""

from typing import Any

Row = dict[str, Any]

BASIC, BOTTLENECK = Row(block="basic"), Row(block="bottleneck")
PREACT_BASIC, PREACT = Row(block="preact_basic"), Row(block="preact_bottleneck")

# He et al. 2019, "Bag of tricks", figure 2. C: a deep stem. D: a deep stem, and an average pool in the shortcut.
# S: a wider deep stem. T (timm): a tiered stem.
C = Row(stem="deep")
D = Row(stem="deep", shortcut="average")
S = Row(stem="deep", stem_width=128)
T = Row(stem="tiered", shortcut="average")

SE, ECA = Row(attention="se"), Row(attention="eca")
BLUR, AVERAGE = Row(anti_alias="blur"), Row(anti_alias="average")
# Xie et al. 2017, table 1
X32x4, X32x8, X64x4 = (Row(cardinality=c, base_width=w) for c, w in ((32, 4), (32, 8), (64, 4)))

# Blocks per stage, by the number of layers in the network's name.
B18, B34, B26 = Row(depths=(2, 2, 2, 2)), Row(depths=(3, 4, 6, 3)), Row(depths=(2, 2, 2, 2))
B50, B101, B152 = Row(depths=(3, 4, 6, 3)), Row(depths=(3, 4, 23, 3)), Row(depths=(3, 8, 36, 3))
B200, B269 = Row(depths=(3, 24, 36, 3)), Row(depths=(3, 30, 48, 8))


def _pruned(*stages: str) -> Row:
    """Return the row for stages of bottlenecks, each given as "output: first-second first-second ..."."""
    shapes = []
    for stage in stages:
        output, blocks = stage.split(": ")
        shapes.append(tuple((*map(int, b.split("-")), int(output)) for b in blocks.split()))
    return Row(block_widths=tuple(shapes))


def _rs(*depths: int) -> Row:
    """Return the row of a ResNet-RS. Source: Bello et al. 2021, "Revisiting ResNets", table 10."""
    return BOTTLENECK | D | SE | Row(depths=depths, attention_ratio=0.25, stem_pool="conv")


def _bit(depth: Row, factor: int) -> Row:
    """Return the row of a Big Transfer network. Source: Kolesnikov et al. 2020, section 3.1."""
    widths = tuple(factor * width for width in (64, 128, 256, 512))
    return PREACT | depth | Row(widths=widths, norm="group", standardize=1e-8, stem_pool="max_zero")


def _cifar(block: Row, blocks: int, factor: int = 1, **row: Any) -> Row:
    """Return the row of a network with three stages for 32 x 32 images. Source: He et al. 2016, section 4.2."""
    widths = (16 * factor, 32 * factor, 64 * factor)
    small = Row(depths=(blocks,) * 3, widths=widths, stem="cifar", stem_width=16, num_classes=10)
    return block | small | row


def _wide(depth: int, factor: int) -> Row:
    """Return the row of a wide ResNet.

    Source: Zagoruyko and Komodakis 2016, "Wide residual networks", table 1.
    """
    return _cifar(PREACT_BASIC, (depth - 4) // 6, factor, dropout_at="blocks")


PRUNED_50 = _pruned(
    "19: 47-18 52-22 64-35",
    "171: 85-37 107-80 120-85 125-87",
    "818: 198-126 255-232 256-233 253-235 256-225 256-239",
    "2022: 492-237 512-500 512-490",
)
PRUNED_101 = _pruned(
    "26: 45-25 53-20 60-27",
    "142: 81-24 93-49 102-54 122-78",
    "278: 101-25 239-160 234-156 250-176 253-191 251-175 230-128 244-154 244-159 238-97 244-149 "
    "253-181 245-119 255-216 256-201 253-149 254-141 256-190 256-217 255-156 256-155 256-232 256-214",
    "2042: 499-289 512-512 512-502",
)  # Aflalo et al. 2020, "Knapsack pruning with inner distillation"

VARIANTS: dict[str, Row] = {
    # ResNet, and its C, D, S and T forms
    "resnet10t": BASIC | T | Row(depths=(1, 1, 1, 1)),
    "resnet14t": BOTTLENECK | T | Row(depths=(1, 1, 1, 1)),
    "resnet18": BASIC | B18,
    "resnet18d": BASIC | B18 | D,
    "resnet34": BASIC | B34,
    "resnet34d": BASIC | B34 | D,
    "resnet26": BOTTLENECK | B26,
    "resnet26d": BOTTLENECK | B26 | D,
    "resnet26t": BOTTLENECK | B26 | T,
    "resnet50": BOTTLENECK | B50,
    "resnet50c": BOTTLENECK | B50 | C,
    "resnet50d": BOTTLENECK | B50 | D,
    "resnet50s": BOTTLENECK | B50 | S,
    "resnet50t": BOTTLENECK | B50 | T,
    "resnet101": BOTTLENECK | B101,
    "resnet101c": BOTTLENECK | B101 | C,
    "resnet101d": BOTTLENECK | B101 | D,
    "resnet101s": BOTTLENECK | B101 | S,
    "resnet152": BOTTLENECK | B152,
    "resnet152c": BOTTLENECK | B152 | C,
    "resnet152d": BOTTLENECK | B152 | D,
    "resnet152s": BOTTLENECK | B152 | S,
    "resnet200": BOTTLENECK | B200,
    "resnet200d": BOTTLENECK | B200 | D,
    "test_resnet": D
    | Row(
        block=("basic", "basic", "bottleneck", "basic"),
        depths=(1, 1, 1, 1),
        widths=(32, 48, 48, 96),
    ),
    # the original ResNet, with the stride of a block in its first 1x1
    "resnet50_v1": BOTTLENECK | B50 | Row(stride_first=True),
    "resnet101_v1": BOTTLENECK | B101 | Row(stride_first=True),
    "resnet152_v1": BOTTLENECK | B152 | Row(stride_first=True),
    # wide, ResNeXt, GroupNorm
    "wide_resnet50_2": BOTTLENECK | B50 | Row(base_width=128),
    "wide_resnet101_2": BOTTLENECK | B101 | Row(base_width=128),
    "resnet50_gn": BOTTLENECK | B50 | Row(norm="group"),
    "resnext50_32x4d": BOTTLENECK | B50 | X32x4,
    "resnext50d_32x4d": BOTTLENECK | B50 | X32x4 | D,
    "resnext101_32x4d": BOTTLENECK | B101 | X32x4,
    "resnext101_32x8d": BOTTLENECK | B101 | X32x8,
    "resnext101_32x16d": BOTTLENECK | B101 | Row(cardinality=32, base_width=16),
    "resnext101_32x32d": BOTTLENECK | B101 | Row(cardinality=32, base_width=32),
    "resnext101_64x4d": BOTTLENECK | B101 | X64x4,
    # efficient channel attention
    "ecaresnet26t": BOTTLENECK | B26 | T | ECA,
    "ecaresnet50d": BOTTLENECK | B50 | D | ECA,
    "ecaresnet50d_pruned": BOTTLENECK | B50 | D | ECA | PRUNED_50,
    "ecaresnet50t": BOTTLENECK | B50 | T | ECA,
    "ecaresnetlight": BOTTLENECK | ECA | Row(depths=(1, 1, 11, 3), shortcut="average"),
    "ecaresnet101d": BOTTLENECK | B101 | D | ECA,
    "ecaresnet101d_pruned": BOTTLENECK | B101 | D | ECA | PRUNED_101,
    "ecaresnet200d": BOTTLENECK | B200 | D | ECA,
    "ecaresnet269d": BOTTLENECK | B269 | D | ECA,
    "ecaresnext26t_32x4d": BOTTLENECK | B26 | X32x4 | T | ECA,
    "ecaresnext50t_32x4d": BOTTLENECK | B50 | X32x4 | T | ECA,
    # squeeze and excitation
    "seresnet18": BASIC | B18 | SE,
    "seresnet34": BASIC | B34 | SE,
    "seresnet50": BOTTLENECK | B50 | SE,
    "seresnet50t": BOTTLENECK | B50 | T | SE,
    "seresnet101": BOTTLENECK | B101 | SE,
    "seresnet152": BOTTLENECK | B152 | SE,
    "seresnet152d": BOTTLENECK | B152 | D | SE,
    "seresnet200d": BOTTLENECK | B200 | D | SE,
    "seresnet269d": BOTTLENECK | B269 | D | SE,
    "seresnext26d_32x4d": BOTTLENECK | B26 | X32x4 | D | SE,
    "seresnext26t_32x4d": BOTTLENECK | B26 | X32x4 | T | SE,
    "seresnext50_32x4d": BOTTLENECK | B50 | X32x4 | SE,
    "seresnext101_32x4d": BOTTLENECK | B101 | X32x4 | SE,
    "seresnext101_32x8d": BOTTLENECK | B101 | X32x8 | SE,
    "seresnext101d_32x8d": BOTTLENECK | B101 | X32x8 | D | SE,
    "seresnext101_64x4d": BOTTLENECK | B101 | X64x4 | SE,
    "senet154": BOTTLENECK | B152 | X64x4 | S | SE | Row(shortcut_size=3, reduce_first=2),
    # anti-aliased
    "resnetblur18": BASIC | B18 | BLUR,
    "resnetblur50": BOTTLENECK | B50 | BLUR,
    "resnetblur50d": BOTTLENECK | B50 | D | BLUR,
    "resnetblur101d": BOTTLENECK | B101 | D | BLUR,
    "resnetaa34d": BASIC | B34 | D | AVERAGE,
    "resnetaa50": BOTTLENECK | B50 | AVERAGE,
    "resnetaa50d": BOTTLENECK | B50 | D | AVERAGE,
    "resnetaa101d": BOTTLENECK | B101 | D | AVERAGE,
    "seresnetaa50d": BOTTLENECK | B50 | D | SE | AVERAGE,
    "seresnextaa101d_32x8d": BOTTLENECK | B101 | X32x8 | D | SE | AVERAGE,
    "seresnextaa201d_32x8d": BOTTLENECK
    | (X32x8 | D | SE | AVERAGE | Row(depths=(3, 24, 36, 4), stem_width=128)),
    # ResNet-RS
    "resnetrs50": _rs(3, 4, 6, 3),
    "resnetrs101": _rs(3, 4, 23, 3),
    "resnetrs152": _rs(3, 8, 36, 3),
    "resnetrs200": _rs(3, 24, 36, 3),
    "resnetrs270": _rs(4, 29, 53, 4),
    "resnetrs350": _rs(4, 36, 72, 4),
    "resnetrs420": _rs(4, 44, 87, 4),
    # pre-activation
    "resnetv2_18": PREACT_BASIC | B18,
    "resnetv2_18d": PREACT_BASIC | B18 | D,
    "resnetv2_34": PREACT_BASIC | B34,
    "resnetv2_34d": PREACT_BASIC | B34 | D,
    "resnetv2_50": PREACT | B50,
    "resnetv2_50d": PREACT | B50 | D,
    "resnetv2_50t": PREACT | B50 | T,
    "resnetv2_101": PREACT | B101,
    "resnetv2_101d": PREACT | B101 | D,
    "resnetv2_152": PREACT | B152,
    "resnetv2_152d": PREACT | B152 | D,
    "resnetv2_50d_gn": PREACT | B50 | D | Row(norm="group"),
    "resnetv2_50d_evos": PREACT | B50 | D | Row(norm="evonorm_s0"),
    "resnetv2_50d_frn": PREACT | B50 | D | Row(norm="frn"),
    "resnetv2_50x1_bit": _bit(B50, 1),
    "resnetv2_50x3_bit": _bit(B50, 3),
    "resnetv2_101x1_bit": _bit(B101, 1),
    "resnetv2_101x3_bit": _bit(B101, 3),
    "resnetv2_152x2_bit": _bit(B152, 2),
    "resnetv2_152x4_bit": _bit(B152, 4),
    # for 32 x 32 images: the papers' networks with three stages, and the ImageNet networks with a 3x3 stem
    **{f"resnet{6 * n + 2}": _cifar(BASIC, n, shortcut="pad") for n in (3, 5, 7, 9, 18, 200)},
    "preact164": _cifar(PREACT, 18),
    "preact1001": _cifar(PREACT, 111),
    **{
        f"wrn{depth}_{factor}": _wide(depth, factor)
        for depth, factor in ((16, 4), (16, 8), (22, 8), (28, 10), (40, 2), (40, 4))
    },
    # Source: Hu et al. 2020, "Squeeze-and-excitation networks", section 5.1, CIFAR-10
    "sepreact164": _cifar(PREACT, 18) | SE,
    "sewrn16_8": _wide(16, 8) | SE,
    **{
        f"resnet{layers}_cifar": row | Row(stem="cifar", num_classes=10)
        for layers, row in (
            (18, BASIC | B18),
            (34, BASIC | B34),
            (50, BOTTLENECK | B50),
            (101, BOTTLENECK | B101),
            (152, BOTTLENECK | B152),
        )
    },
    # plain networks, without shortcuts. Source: He et al. 2016, figure 3, middle
    **{f"plain{6 * n + 2}": _cifar(BASIC, n, shortcut="none") for n in (3, 5, 7, 9)},
    "plain18": BASIC | B18 | Row(shortcut="none"),
    "plain34": BASIC | B34 | Row(shortcut="none"),
}
