"""Tables that map each leaf of the Flax tree to a tensor in other libraries' files, and the lookup.

A module rule maps the path of a Flax module to the name of a module in the layout; a leaf rule maps a leaf to the
name and shape of a tensor. The first matching rule applies; a path without a matching rule has no counterpart.
Patterns match whole strings. In a module's template, ``{stage}``, ``{block}``, ``{part}`` ... are the named groups
of the pattern. ``{stage0}`` and ``{part0}`` are the numbers of stage and part counted from zero; ``{block1}`` is
the number of the block counted from one.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    """The rank of a Flax leaf, and functions that convert its axes to the layout and back.

    Attributes:
      rank: number of axes of the Flax leaf.
      to_source: Flax array -> array of the layout.
      from_source: the exact inverse.
    """

    rank: int
    to_source: Callable[[np.ndarray], np.ndarray]
    from_source: Callable[[np.ndarray], np.ndarray]


# Each name lists the axes in the layout: o output, i input, h height, w width, k taps, 1 an axis of length one.
TRANSFORMS = {
    "vector": Transform(1, lambda x: x, lambda x: x),
    "oihw": Transform(4, lambda x: x.transpose(3, 2, 0, 1), lambda x: x.transpose(2, 3, 1, 0)),
    "hwio": Transform(4, lambda x: x, lambda x: x),
    "oi": Transform(2, lambda x: x.T, lambda x: x.T),
    "oi11": Transform(2, lambda x: x.T[:, :, None, None], lambda x: x[:, :, 0, 0].T),
    "11io": Transform(2, lambda x: x[None, None], lambda x: x[0, 0]),
    "11k": Transform(1, lambda x: x[None, None], lambda x: x[0, 0]),
}


class LeafRule(NamedTuple):
    """A pattern for ``collection/module/leaf``, the tensor's name in its module, and its transform."""

    pattern: str
    name: str
    transform: str


class Counterpart(NamedTuple):
    """The position of a leaf in a layout: the tensor's name, its module, and the transform of its axes."""

    name: str
    module: str
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names and shapes of tensors in one family of files.

    Attributes:
      title: origin of the files, for messages.
      modules: (pattern of a Flax module path, template of the module's name).
      leaves: rules for the leaves.
      separator: text between the name of a module and the name of a tensor.
      ignored: pattern of tensors without a counterpart in Flax.
      counted: whether the files hold ``num_batches_tracked`` next to every running mean.
    """

    title: str
    modules: tuple[tuple[str, str], ...]
    leaves: tuple[LeafRule, ...]
    separator: str = "."
    ignored: str = r".*\.num_batches_tracked"
    counted: bool = True

    def counterpart(self, path: str, rank: int) -> Counterpart | None:
        """Return the `Counterpart` of a Flax leaf such as ``params/layer1_0/conv1/kernel``; None if there is none.

        Args:
          path: collection, modules and leaf, joined by slashes.
          rank: number of axes of the leaf.
        """
        module = self._module(path.partition("/")[2].rpartition("/")[0])
        for rule in self.leaves:
            transform = TRANSFORMS[rule.transform]
            if module and transform.rank == rank and re.fullmatch(rule.pattern, path):
                return Counterpart(module + self.separator + rule.name, module, transform)
        return None

    def _module(self, path: str) -> str | None:
        for pattern, template in self.modules:
            if match := re.fullmatch(pattern, path):
                return template.format(**_numbered(match.groupdict()))
        return None


def _numbered(groups: dict[str, str]) -> dict[str, str | int]:
    """Add the numbers of stage and part counted from zero, and the number of the block counted from one."""
    values: dict[str, str | int] = dict(groups)
    for name in groups.keys() & {"stage", "part"}:  # counted from one in Flax
        values[f"{name}0"] = int(groups[name]) - 1
    if "block" in groups:  # counted from zero in Flax
        values["block1"] = int(groups["block"]) + 1
    return values


BLOCK = r"layer(?P<stage>\d+)_(?P<block>\d+)/"
KERNEL, BIAS = r"params/.*/kernel", r"params/.*/bias"

TORCH_NORM = (
    LeafRule(r"params/.*/scale", "weight", "vector"),
    LeafRule(BIAS, "bias", "vector"),
    LeafRule(r"params/.*/v", "v", "vector"),  # EvoNorm
    LeafRule(r"params/.*/tau", "tau", "vector"),  # filter response normalization
    LeafRule(r"batch_stats/.*/mean", "running_mean", "vector"),
    LeafRule(r"batch_stats/.*/var", "running_var", "vector"),
)

TORCH_ATTENTION = (
    LeafRule(r"params/.*/se/fc\d/kernel", "weight", "oi11"),
    LeafRule(r"params/.*/se/conv/kernel", "weight", "11k"),
)

LAYOUTS = {
    "torch": Layout(
        title="torchvision, or timm's resnet.py",
        modules=(
            (r"(?P<name>conv1|bn1|fc)", "{name}"),
            (r"(?P<name>conv1|maxpool|features|classifier)_(?P<index>\d+)", "{name}.{index}"),
            (BLOCK + r"(?P<name>conv\d|bn\d)", "layer{stage}.{block}.{name}"),
            (BLOCK + r"downsample_(?P<index>\d+)", "layer{stage}.{block}.downsample.{index}"),
            (BLOCK + r"se/(?P<name>fc1|fc2|conv)", "layer{stage}.{block}.se.{name}"),
        ),
        leaves=(
            *TORCH_ATTENTION,
            LeafRule(r"params/(fc|classifier_\d+)/kernel", "weight", "oi"),
            LeafRule(KERNEL, "weight", "oihw"),
            LeafRule(r"batch_stats/conv1/kernel", "weight", "oihw"),  # a whitening kernel
            *TORCH_NORM,
        ),
    ),
    "timm_v2": Layout(
        title="timm's resnetv2.py",
        modules=(
            (r"conv1", "stem.conv"),
            (r"conv1_0", "stem.conv1"),
            (r"conv1_1", "stem.norm1"),
            (r"conv1_3", "stem.conv2"),
            (r"conv1_4", "stem.norm2"),
            (r"conv1_6", "stem.conv3"),
            (BLOCK + r"(?P<name>conv\d|norm\d)", "stages.{stage0}.blocks.{block}.{name}"),
            (BLOCK + r"downsample_conv", "stages.{stage0}.blocks.{block}.downsample.conv"),
            # timm has no such network; the names are those of its resnet.py
            (BLOCK + r"se/(?P<name>fc1|fc2|conv)", "stages.{stage0}.blocks.{block}.se.{name}"),
            (r"norm", "norm"),
            (r"fc", "head.fc"),
        ),
        leaves=(
            *TORCH_ATTENTION,
            LeafRule(r"params/fc/kernel", "weight", "oi11"),
            LeafRule(KERNEL, "weight", "oihw"),
            *TORCH_NORM,
        ),
    ),
    "huggingface": Layout(
        title="ResNetForImageClassification of Hugging Face transformers",
        modules=(
            (r"conv1", "resnet.embedder.embedder.convolution"),
            (r"bn1", "resnet.embedder.embedder.normalization"),
            (
                BLOCK + r"conv(?P<part>\d)",
                "resnet.encoder.stages.{stage0}.layers.{block}.layer.{part0}.convolution",
            ),
            (
                BLOCK + r"bn(?P<part>\d)",
                "resnet.encoder.stages.{stage0}.layers.{block}.layer.{part0}.normalization",
            ),
            (
                BLOCK + r"downsample_0",
                "resnet.encoder.stages.{stage0}.layers.{block}.shortcut.convolution",
            ),
            (
                BLOCK + r"downsample_1",
                "resnet.encoder.stages.{stage0}.layers.{block}.shortcut.normalization",
            ),
            (r"fc", "classifier.1"),
        ),
        leaves=(
            LeafRule(r"params/fc/kernel", "weight", "oi"),
            LeafRule(KERNEL, "weight", "oihw"),
            *TORCH_NORM,
        ),
    ),
    "bit": Layout(
        title="Google's BiT",
        modules=(
            (r"conv1", "resnet/root_block/standardized_conv2d"),
            (BLOCK + r"conv1", "resnet/block{stage}/unit{block1:02d}/a/standardized_conv2d"),
            (BLOCK + r"conv2", "resnet/block{stage}/unit{block1:02d}/b/standardized_conv2d"),
            (BLOCK + r"conv3", "resnet/block{stage}/unit{block1:02d}/c/standardized_conv2d"),
            (BLOCK + r"norm1", "resnet/block{stage}/unit{block1:02d}/a/group_norm"),
            (BLOCK + r"norm2", "resnet/block{stage}/unit{block1:02d}/b/group_norm"),
            (BLOCK + r"norm3", "resnet/block{stage}/unit{block1:02d}/c/group_norm"),
            (
                BLOCK + r"downsample_conv",
                "resnet/block{stage}/unit{block1:02d}/a/proj/standardized_conv2d",
            ),
            (r"norm", "resnet/group_norm"),
            (r"fc", "resnet/head/conv2d"),
        ),
        leaves=(
            LeafRule(r"params/fc/kernel", "kernel", "11io"),
            LeafRule(r"params/fc/bias", "bias", "vector"),
            LeafRule(KERNEL, "kernel", "hwio"),
            LeafRule(r"params/.*/scale", "gamma", "vector"),
            LeafRule(BIAS, "beta", "vector"),
        ),
        separator="/",
        ignored=r"(?!)",
        counted=False,
    ),
}

# The Flax paths of the first convolution and of the classifier in any tree.
STEMS = ("params/conv1/kernel", "params/conv1_0/kernel", "params/features_0/kernel")
HEAD_KERNELS = ("params/fc/kernel", "params/classifier_6/kernel")
HEAD = r"params/(fc|classifier_6)/(kernel|bias)"
