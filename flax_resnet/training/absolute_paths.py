"""Absolute paths, so that a run does not depend on the folder in which its command was typed."""

import dataclasses
import os

from flax_resnet.config import Config
from flax_resnet.settings import UNSET
from flax_resnet.training.pretrained import is_path


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with its paths as absolute ones: those of the data and of the teacher.

    Links are not followed, so that they may point elsewhere later. A text that is no path, such as the name of a
    dataset or of weights on a hub, stays as it is. So does `model.pretrained`, which belongs to the identity of a
    run and is not read when a run resumes.
    """
    data, distill = config.data, config.distill
    if data.path is not UNSET and os.path.exists(os.path.expanduser(data.path)):
        data = data.but(path=_absolute(data.path))
    if data.data_dir is not UNSET and data.data_dir and "://" not in data.data_dir:
        data = data.but(data_dir=_absolute(data.data_dir))
    if distill.teacher and is_path(distill.teacher):
        distill = distill.but(teacher=_absolute(distill.teacher))
    return dataclasses.replace(config, data=data, distill=distill)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
