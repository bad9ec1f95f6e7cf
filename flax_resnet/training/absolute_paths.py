"""Absolute paths, so that a run does not depend on the folder in which its command was typed."""

import dataclasses
import os

from flax_resnet.config import Config
from flax_resnet.settings import UNSET
from flax_resnet.training.pretrained import is_path


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with its paths as absolute ones: those of the data, the weights and the teacher.

    Links are not followed, so that they may point elsewhere later. A text that is no path, such as the name of a
    dataset or of weights on a hub, stays as it is.
    """
    data, model, distill = config.data, config.model, config.distill
    if data.path is not UNSET and os.path.exists(os.path.expanduser(data.path)):
        data = data.but(path=_absolute(data.path))
    if data.data_dir is not UNSET and data.data_dir and "://" not in data.data_dir:
        data = data.but(data_dir=_absolute(data.data_dir))
    if model.pretrained and is_path(model.pretrained):
        model = model.but(pretrained=_absolute(model.pretrained))
    if distill.teacher and is_path(distill.teacher):
        distill = distill.but(teacher=_absolute(distill.teacher))
    return dataclasses.replace(config, data=data, model=model, distill=distill)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
