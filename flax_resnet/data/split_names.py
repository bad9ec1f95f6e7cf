"""Names of splits in a folder or a CSV file: which names stand for a split, and for which one."""

import os
from collections.abc import Sequence

from flax_resnet.data.data_section import Data
from flax_resnet.data.folder_listing import sub_folders

# Usual names of splits, in lower case; the first that exists is used.
TRAINING = ("train", "training")
EVALUATION = ("test", "testing", "val", "validation", "valid", "eval", "evaluation", "dev")


def split_folders(root: str | os.PathLike, named: Sequence[str] = ()) -> list[str]:
    """Return the sub-folders of a folder that are splits, not classes; [] if there are none.

    The usual names in any case are splits if there is one for training and one for evaluation, if there is nothing
    else, or if the one for training holds folders itself. Otherwise they are classes: a train is also a vehicle.

    Args:
      root: the folder.
      named: names of splits that the user gives; folders of these names are splits.
    """
    folders = sub_folders(root)
    given = {name.casefold() for name in named}
    train, held = (
        [name for name in folders if name.casefold() in names] for names in (TRAINING, EVALUATION)
    )
    unusual = [name for name in folders if name.casefold() in given - {*TRAINING, *EVALUATION}]
    usual = [name for name in folders if name in train + held]
    alone = bool(usual) and len(usual) == len(folders)
    nested = any(sub_folders(os.path.join(root, name)) for name in train)
    is_split = bool(unusual or (train and held) or alone or nested)
    return [name for name in folders if name in usual + unusual] if is_split else []


def find_split(names: Sequence[str], wanted: str, *, train: bool) -> str | None:
    """Return the name that stands for a split: the same in any case, or for a default split another usual name."""
    usual: tuple[str, ...] = ()
    if wanted == (Data.train_split if train else Data.eval_split):
        usual = TRAINING if train else EVALUATION
    by_case = {name.casefold(): name for name in reversed(names)}
    candidates = (by_case.get(name) for name in (wanted.casefold(), *usual))
    return wanted if wanted in names else next(filter(None, candidates), None)
