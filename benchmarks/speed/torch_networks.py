"""PyTorch networks that neither timm nor torchvision provides, built from timm's blocks."""

from collections.abc import Sequence

import torch
from timm.models.resnet import BasicBlock, ResNet, make_blocks
from torch import nn


class PaddedShortcut(nn.Module):
    """Shortcut of option A: take every second row and column, and pad zero channels on both sides."""

    def __init__(self, new: int):
        super().__init__()
        self.before, self.after = new // 2, new - new // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C + new, H / 2, W / 2]."""
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def cifar_resnet(*, shortcut: str = "projection", depth: int = 3, classes: int = 10) -> nn.Module:
    """Build the three-stage ResNet for 32 px.

    Args:
      shortcut: "projection" (option B) or "pad" (option A).
      depth: blocks per stage; with n blocks, the network has 6n + 2 layers.
      classes: size of the logits.

    Source: He et al. 2016, "Deep residual learning", section 4.2.
    """
    widths, depths = (16, 32, 64), (depth,) * 3
    net = ResNet(BasicBlock, depths, num_classes=classes, channels=widths)
    net.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    net.bn1 = nn.BatchNorm2d(16)
    net.maxpool = net.layer4 = nn.Identity()
    stages, _ = make_blocks((BasicBlock,) * 3, widths, depths, 16, norm_layer=nn.BatchNorm2d)
    for name, stage in stages:
        setattr(net, name, stage)
    if shortcut == "pad":
        net.layer2[0].downsample, net.layer3[0].downsample = PaddedShortcut(16), PaddedShortcut(32)
    return net


class Airbench(nn.Module):
    """The network of `flax_resnet.models.airbench.Airbench`, with the tensor names of its export to PyTorch.

    Args:
      widths: channels of each group.
      classes: size of the logits.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", appendix A.
    """

    def __init__(self, widths: Sequence[int] = (64, 256, 256), classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 2)
        self.conv1.weight.requires_grad = False
        self.groups = []
        for number, (inputs, outputs) in enumerate(zip((24, *widths), widths, strict=False), 1):
            self.groups.append(f"layer{number}")
            self.add_module(self.groups[-1], nn.Sequential(AirbenchGroup(inputs, outputs)))
        self.fc = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, 3, 32, 32] to logits [N, classes]."""
        x = nn.functional.gelu(self.conv1(x))
        for name in self.groups:
            x = getattr(self, name)(x)
        return self.fc(x.amax((2, 3))) / 9


class AirbenchGroup(nn.Module):
    """Two 3x3 convolutions with batch normalisation; a max-pool follows the first."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H // 2, W // 2]."""
        x = nn.functional.gelu(self.bn1(nn.functional.max_pool2d(self.conv1(x), 2)))
        return nn.functional.gelu(self.bn2(self.conv2(x)))
