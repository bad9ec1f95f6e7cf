"""The configuration of pretrained weights: their network, and the preprocessing that they were trained for."""

import dataclasses
from typing import Any

from flax_resnet.augment.augment_section import Augment
from flax_resnet.config import Config
from flax_resnet.data.data_section import Data
from flax_resnet.models.model_section import Model
from flax_resnet.models.network import Network
from flax_resnet.weights import Pretrained


def pretrained_config(
    about: Pretrained, model: Network, name: str, options: dict[str, Any]
) -> Config:
    """Return the configuration with the preprocessing of pretrained weights."""
    known = {field.name for field in dataclasses.fields(Model)}
    settings = {key: value for key, value in options.items() if key in known}
    settings["dtype"] = model.dtype.name
    mean, std = about.mean, about.std
    if model.in_channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Config(
        data=evaluation_data(about),
        augment=Augment(mean=mean, std=std, flip="horizontal"),
        model=Model(
            name=name, num_classes=model.num_classes, in_channels=model.in_channels, **settings
        ),
    )


def evaluation_data(about: Pretrained) -> Data:
    """Return the data section with the image size, crop and filter of pretrained weights."""
    squashed = about.crop_mode == "squash"
    crop: dict[str, Any] = {} if squashed else {"eval_crop_fraction": about.crop_fraction}
    return Data(
        name="imagenet2012",
        eval_split="validation",
        image_size=about.image_size,
        train_crop="random_resized",
        eval_crop="resize" if squashed else "center",
        interpolation=about.interpolation,
        **crop,
    )
