"""Networks in PyTorch that neither timm nor torchvision has, made of timm's blocks."""

import torch
from timm.models.resnet import BasicBlock, ResNet, make_blocks
from torch import nn


class PaddedShortcut(nn.Module):
    """Option A: every second row and column, with zeros for the new channels on either side."""

    def __init__(self, new: int):
        super().__init__()
        self.before, self.after = new // 2, new - new // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, C, H, W] to [N, C + new, H / 2, W / 2]."""
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def cifar_resnet(*, shortcut: str = "projection", depth: int = 3, classes: int = 10) -> nn.Module:
    """Builds the three-stage ResNet for 32 px.

    Args:
      shortcut: "projection" (option B) or "pad" (option A).
      depth: blocks per stage: n of the 6n + 2 layers.
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
