"""Writes tests/golden/logits.json from timm and torchvision, in float64.

    python tests/golden/make.py

Needs the extra `parity`. The file holds what timm 1.0.31 and torchvision 0.29.1 gave.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from golden.cases import GOLDENS, WITH_GRADIENTS
from parity_networks import exact, loaded, to_channels_first, torch_outputs, torch_shapes
from weights_by_name import images_of, tensors_of

FILE = pathlib.Path(__file__).with_name("logits.json")


def golden(label):
    pair = GOLDENS[label]
    images = images_of(2, pair.size, pair.channels)
    net = loaded(pair, tensors_of(torch_shapes(pair)))
    logits = torch_outputs(net, images, torch.float64)
    # Random weights may put out much the same for all images: that would compare little.
    if not np.abs(logits[0] - logits[1]).max() > 0.01 * np.abs(logits).max():
        raise SystemExit(f"{label}: the logits do not depend on the image")
    row = {"logits": logits.tolist()}
    if label in WITH_GRADIENTS:
        with exact():
            outputs = net.train()(to_channels_first(images, torch.float64))
        loss = nn.functional.cross_entropy(outputs, torch.tensor([3, 7]))
        loss.backward()
        row["loss"] = loss.item()
        row["gradients"] = {
            name: value.grad.norm().item() for name, value in net.named_parameters()
        }
    return row


def main():
    rows = {}
    for label in GOLDENS:
        rows[label] = golden(label)
        print(label)
    lines = [f"{json.dumps(label)}: {json.dumps(row)}" for label, row in rows.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
