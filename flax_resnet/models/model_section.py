"""Settings of the network."""

import dataclasses
from typing import Any

from flax_resnet.settings import (
    ANY,
    above,
    at_least,
    one_of,
    setting,
    within,
)


@dataclasses.dataclass(frozen=True)
class Model:
    """Settings of the network. An option at its default keeps the value of the named network.

    `models/registry.py` checks the values of the options when it builds the network.
    """

    name: str = setting(
        "resnet18",
        ANY,
        "name of the network, one of flax_resnet.list_models(); '' for the network of pretrained",
    )
    pretrained: str = setting(
        "",
        ANY,
        "weights to start from: a timm name such as resnet50.a1_in1k, a run folder, or a weights file; '' for none",
    )
    num_classes: int = setting(
        0, at_least(0), "number of logits; 0 for the dataset's number of classes"
    )
    in_channels: int = setting(3, one_of(1, 3), "channels of the images: 3 for colour, 1 for grey")
    dtype: str = setting(
        "auto",
        one_of("auto", "float32", "bfloat16", "float16"),
        "compute dtype; logits stay float32; auto is bfloat16 on GPU and TPU, float32 on CPU; float16 uses "
        "loss scaling",
    )
    depths: tuple = setting((), ANY, "blocks per stage")
    widths: tuple = setting(
        (), ANY, "channels of each stage's 3x3 convolutions; bottlenecks output four times as many"
    )
    stem: str = setting(
        "",
        ANY,
        "imagenet (7x7, stride 2, max pool), cifar (3x3, no pool), deep or tiered (three 3x3, max pool)",
    )
    shortcut: str = setting(
        "", ANY, "projection (option B), average (ResNet-D), pad (option A), or none (no shortcuts)"
    )
    output_stride: int = setting(
        32,
        ANY,
        "stride of the last stage: 8, 16 or 32; below 32, later stages are dilated instead of strided",
    )
    attention: str = setting("", ANY, "channel attention: none, se (squeeze-and-excitation) or eca")
    anti_alias: str = setting(
        "", ANY, "low-pass filter that replaces strides: none, blur or average"
    )
    act: str = setting("", ANY, "activation: relu, silu, gelu, leaky_relu or elu")
    norm: str = setting(
        "",
        ANY,
        "normalisation: batch, frozen (batch with fixed statistics), group, evonorm_s0 or frn",
    )
    norm_scope: str = setting(
        "global",
        one_of("global", "local", "ghost"),
        "statistics that batch normalisation uses: of the global batch, each device (local) or each group (ghost)",
    )
    norm_groups: int = setting(
        1, at_least(1), "for norm_scope=ghost: number of groups of the global batch"
    )
    norm_momentum: float = setting(
        0.1,
        within(0, 1),
        "weight of the newest batch in the running statistics of batch normalisation",
    )
    norm_epsilon: float = setting(1e-5, above(0), "constant added to the variance in normalisation")
    zero_init_last: bool = setting(
        False,
        ANY,
        "initialise residual branches to zero, so that every block starts as the identity",
    )
    dropout: float = setting(
        -1.0, ANY, "dropout rate; -1 for the network's default (0.5 for AlexNet and VGG, else 0)"
    )
    drop_path: float = setting(
        0.0,
        ANY,
        "stochastic depth rate of the last block; the rates rise linearly from 0 in the first block",
    )
    global_pool: str = setting(
        "avg",
        one_of("avg", "max", "avgmax"),
        "pooling of the last feature map; avgmax is the mean of avg and max",
    )
    remat: str = setting(
        "none",
        ANY,
        "unit whose activations the backward pass recomputes to save memory: none, block or stage",
    )
    scan_blocks: bool = setting(
        False,
        ANY,
        "run the identical blocks of a stage as one loop; compiles faster, but runs slower on CPU",
    )

    def options(self) -> dict[str, Any]:
        """Return the options of `create_model` that differ from the named network."""
        apart = ("name", "pretrained", "num_classes", "norm_scope", "dtype")
        values, unset = dataclasses.asdict(self), dataclasses.asdict(Model())
        return {k: v for k, v in values.items() if k not in apart and v != unset[k]}
