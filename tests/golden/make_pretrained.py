"""Writes flax_resnet/weights/pretrained.csv and imagenet1k.csv from timm and torchvision.

    python tests/golden/make_pretrained.py

The two are what timm 1.0.31 and torchvision 0.29.1 gave.
"""

import csv
import pathlib
from importlib import resources

import timm
from timm.models import resnet, resnetv2
from torchvision.models._meta import _IMAGENET_CATEGORIES

FOLDER = pathlib.Path(__file__).parents[2] / "flax_resnet" / "weights"
COLUMNS = (
    "name",
    "tag",
    "default",
    "num_classes",
    "image_size",
    "crop_fraction",
    "interpolation",
    "mean",
    "std",
    "test_image_size",
    "test_crop_fraction",
)


def pretrained():
    for module in (resnet, resnetv2):
        for name, default in module.default_cfgs.items():
            if not timm.is_model(name):  # weights of a network that timm does not make
                continue
            for tag in default.tags:
                config = default.cfgs[tag]
                if not config.hf_hub_id:
                    continue
                test = config.test_input_size
                yield (
                    name,
                    tag,
                    int(tag == default.tags[0]),
                    config.num_classes,
                    config.input_size[1],
                    config.crop_pct,
                    config.interpolation,
                    " ".join(map(str, config.mean)),
                    " ".join(map(str, config.std)),
                    test[1] if test else "",
                    config.test_crop_pct or "",
                )


def write(file, columns, rows):
    with (FOLDER / file).open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def main():
    write(
        "pretrained.csv", COLUMNS, sorted(pretrained(), key=lambda row: (row[0], -row[2], row[1]))
    )
    wnids = (resources.files("timm.data") / "_info" / "imagenet_synsets.txt").read_text().split()
    if wnids != sorted(wnids) or len(wnids) != 1000:
        raise SystemExit("timm's synsets are not the 1000 in ascending order")
    write("imagenet1k.csv", ("wnid", "name"), zip(wnids, _IMAGENET_CATEGORIES, strict=True))


if __name__ == "__main__":
    main()
