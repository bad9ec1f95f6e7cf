"""Settings of the network."""

import dataclasses
from typing import Any

from flax_resnet.models.layers.activations import ACTIVATIONS
from flax_resnet.models.layers.attention import ATTENTION
from flax_resnet.models.layers.normalization import NORMS
from flax_resnet.models.layers.pooling import ANTI_ALIAS, GLOBAL_POOLS
from flax_resnet.models.shortcuts import SHORTCUTS
from flax_resnet.models.stems import STEMS
from flax_resnet.settings import (
    ANY,
    REQUIRED,
    UNSET,
    Rule,
    Section,
    above,
    all_of,
    at_least,
    choice,
    one_of,
    setting,
    within,
)


def per_stage(most: int) -> Rule:
    """Accept whole numbers from 1 to `most`, one per stage. Larger numbers are probably typing errors."""
    return Rule(
        lambda v: 0 < len(v) <= 100 and all(type(n) is int and 0 < n <= most for n in v),
        f"whole numbers from 1 to {most:,}, one per stage",
    )


DROP_RATE = Rule(lambda v: 0 <= v < 1, "at least 0 and below 1")
IMAGE_CHANNELS = (1, 3)  # numbers of channels that images can have: grey and colour
CHANNELS = 3  # channels of the images, unless a setting or the weights say otherwise


@dataclasses.dataclass(frozen=True)
class Model(Section):
    """Settings of the network. An option that is not set keeps the value of the named network.

    All settings but `name`, `pretrained`, `num_classes` and `dtype` are options. `create_model` refuses the options
    that the network does not use.
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
        0, within(0, 2**24), "number of logits; 0 for the dataset's number of classes"
    )
    in_channels: int = setting(
        UNSET,
        one_of(*IMAGE_CHANNELS),
        "channels of the images: 3 for colour, 1 for grey; if not set, 3 or those of pretrained",
    )
    dtype: str = setting(
        "auto",
        one_of("auto", "float32", "bfloat16", "float16"),
        "compute dtype; logits stay float32; auto is bfloat16 on GPU and TPU, float32 on CPU; float16 uses "
        "loss scaling",
    )
    depths: tuple = setting(UNSET, per_stage(10_000), "blocks per stage")
    widths: tuple = setting(
        UNSET,
        per_stage(2**20),
        "channels of each stage's 3x3 convolutions; bottlenecks output four times as many",
    )
    stem: str = choice(UNSET, STEMS, "convolutions before the first stage")
    shortcut: str = choice(UNSET, SHORTCUTS, "shortcut of blocks that change the map")
    output_stride: int = setting(
        UNSET,
        one_of(8, 16, 32),
        "stride of the last stage; below 32, later stages are dilated instead of strided",
    )
    attention: str = choice(UNSET, ATTENTION, "channel attention at the end of each block")
    attention_ratio: float = setting(
        UNSET, at_least(0), "hidden width of squeeze-and-excitation / channels"
    )
    anti_alias: str = choice(UNSET, ANTI_ALIAS, "low-pass filter that replaces strides")
    act: str = choice(UNSET, ACTIVATIONS, "activation")
    norm: str = choice(UNSET, NORMS, "normalisation")
    norm_scope: str = setting(
        UNSET,
        one_of("global", "local", "ghost"),
        "statistics that batch normalisation uses: of the global batch, each device (local) or each group (ghost); "
        "if not set, global",
    )
    norm_groups: int = setting(
        REQUIRED,
        at_least(2),
        "number of groups of the global batch",
        needs=all_of(norm_scope="ghost"),
    )
    collapse: str = setting(
        UNSET,
        one_of("auto", "on", "off"),
        "whether training computes a 1x1 convolution and the batch normalisation behind it as one product: auto "
        "for bfloat16 on GPU, if that moves fewer bytes; on if the convolution has more outputs than inputs; if "
        "not set, auto",
    )
    norm_momentum: float = setting(
        UNSET,
        within(0, 1),
        "weight of the newest batch in the running statistics of batch normalisation",
    )
    norm_epsilon: float = setting(
        UNSET, above(0), "constant added to the variance in normalisation"
    )
    zero_init_last: bool = setting(
        UNSET,
        ANY,
        "initialise residual branches to zero, so that every block starts as the identity",
    )
    dropout: float = setting(
        UNSET, DROP_RATE, "dropout rate; if not set, 0.5 for AlexNet and VGG, and 0 for others"
    )
    drop_path: float = setting(
        UNSET,
        DROP_RATE,
        "stochastic depth rate of the last block; the rates rise linearly from 0 in the first block",
    )
    global_pool: str = choice(UNSET, GLOBAL_POOLS, "pooling of the last feature map")
    remat: str = setting(
        UNSET,
        one_of("none", "block", "stage"),
        "unit whose activations the backward pass recomputes to save memory",
    )
    scan_blocks: bool = setting(
        UNSET,
        ANY,
        "run the identical blocks of a stage as one loop; compiles faster, but runs slower on CPU",
    )

    @property
    def channels(self) -> int:
        """The channels of the images. If `name` is empty, the weights can have another number."""
        return CHANNELS if self.in_channels is UNSET else self.in_channels

    @property
    def ghost_groups(self) -> int:
        """The number of groups of the global batch that are normalised separately; 1 without ghost statistics."""
        return self.norm_groups or 1

    def options(self) -> dict[str, Any]:
        """Return the options of `create_model` that are set."""
        values = dataclasses.asdict(self)
        return {
            key: value
            for key, value in values.items()
            if key not in ("name", "pretrained", "num_classes", "dtype") and value is not UNSET
        }
