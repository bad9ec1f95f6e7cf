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

    models/registry.py checks the values of options when it builds a network.
    """

    name: str = setting(
        "resnet18", ANY, "a name of flax_resnet.list_models(); '' for that of pretrained"
    )
    pretrained: str = setting(
        "",
        ANY,
        "weights to start from: a timm name such as resnet50.a1_in1k, a run folder, or a file of weights",
    )
    num_classes: int = setting(0, at_least(0), "size of the logits; 0 for the dataset's classes")
    in_channels: int = setting(3, one_of(1, 3), "3 for colour, 1 for grey")
    dtype: str = setting(
        "auto",
        one_of("auto", "float32", "bfloat16", "float16"),
        "compute dtype; logits stay float32; auto is bfloat16 on GPU and TPU, float32 on CPU; float16 scales "
        "the loss",
    )
    depths: tuple = setting((), ANY, "blocks per stage")
    widths: tuple = setting((), ANY, "channels per stage, before a bottleneck's expansion")
    stem: str = setting("", ANY, "imagenet (7x7/2, pool), cifar (3x3, no pool), deep or tiered")
    shortcut: str = setting("", ANY, "projection (B), average (D), pad (A), or none (plain)")
    output_stride: int = setting(32, ANY, "8, 16 or 32: later stages are dilated, not strided")
    attention: str = setting("", ANY, "none, se or eca")
    anti_alias: str = setting("", ANY, "none, blur or average, before subsampling")
    act: str = setting("", ANY, "relu, silu, gelu, leaky_relu or elu")
    norm: str = setting("", ANY, "batch, frozen, group, evonorm_s0 or frn")
    norm_scope: str = setting(
        "global",
        one_of("global", "local", "ghost"),
        "whose statistics batch normalisation takes: the batch's, each device's, each group's",
    )
    norm_groups: int = setting(1, at_least(1), "groups of the batch, for norm_scope=ghost")
    norm_momentum: float = setting(
        0.1, within(0, 1), "weight of the newest batch in the statistics"
    )
    norm_epsilon: float = setting(1e-5, above(0), "added to the variance")
    zero_init_last: bool = setting(False, ANY, "start every residual block as the identity")
    dropout: float = setting(-1.0, ANY, "rate; -1 for the network's own (0 but for AlexNet, VGG)")
    drop_path: float = setting(
        0.0,
        ANY,
        "rate of stochastic depth in the last block; it rises linearly from 0 in the first",
    )
    global_pool: str = setting("avg", one_of("avg", "max", "avgmax"), "how the last map is pooled")
    remat: str = setting("none", ANY, "compute again in the backward pass: none, block or stage")
    scan_blocks: bool = setting(
        False, ANY, "identical blocks as one loop: compiles faster, slower on CPU"
    )

    def options(self) -> dict[str, Any]:
        """Return the options of `create_model` that differ from the named network."""
        apart = ("name", "pretrained", "num_classes", "norm_scope", "dtype")
        values, unset = dataclasses.asdict(self), dataclasses.asdict(Model())
        return {k: v for k, v in values.items() if k not in apart and v != unset[k]}
