"""Writes tests/golden/grad_cam.npz from pytorch-grad-cam.

    python tests/golden/make_grad_cam.py

Needs the extra `parity`. The file holds what grad-cam 1.5.7 gave with timm 1.0.31 and torch 2.14.1.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from golden.grad_cam_cases import CLASSES, GRAD_CAMS, STRIDE
from grad_cam_torch import torch_grad_cam

FILE = pathlib.Path(__file__).with_name("grad_cam.npz")


def main():
    rows = {}
    for label, pair in GRAD_CAMS.items():
        maps = torch_grad_cam(pair, CLASSES)
        # A map without positive evidence is 0 everywhere, which compares little.
        if not (maps.max(axis=(1, 2)) > 0.9).sum() >= 3:
            raise SystemExit(f"{label}: most maps are empty; choose other classes")
        rows[label] = maps[:, ::STRIDE, ::STRIDE]
        print(label, maps.mean(axis=(1, 2)))
    np.savez_compressed(FILE, **rows)


if __name__ == "__main__":
    main()
