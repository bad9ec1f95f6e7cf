"""Folders and tables with splits: which sub-folders are splits, and which are classes."""

import csv
import pathlib

import pytest
from conftest import refused
from PIL import Image

from flax_resnet.data.data_section import Data
from flax_resnet.data.open import open_source
from flax_resnet.errors import DataError


def tree(root, *folders):
    """Write two images into each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(root / folder / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("train", "held"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "VAL"),
        ("training", "validation"),
        ("Train", "valid"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_usual_names_of_splits_are_never_classes(train, held, named, tmp_path):
    root = tree(tmp_path / "set", *(f"{split}/{kind}" for split in (train, held) for kind in "ab"))
    own = {"train_split": train, "eval_split": held} if named else {}
    data = Data(source="folder", path=str(root), **own)
    for side, folder in ((True, train), (False, held)):
        source = open_source(data, train=side)
        assert source.class_names == ("a", "b")
        assert {
            file.parent.parent.name for file in map(pathlib.Path, map(source.describe, range(4)))
        } == {folder}


def test_unusual_names_of_splits_are_named_by_the_settings(tmp_path):
    root = tree(
        tmp_path / "set", *(f"{split}/{kind}" for split in ("2023", "2024") for kind in "ab")
    )
    data = Data(source="folder", path=str(root))
    assert open_source(data, train=True).class_names == ("2023", "2024")
    named = data.but(train_split="2023", eval_split="2024")
    assert open_source(named, train=False).class_names == ("a", "b")
    for known, missing, name in (
        ({"train_split": "2023"}, "eval_split", "test"),
        ({"eval_split": "2024"}, "train_split", "train"),
    ):
        with refused(f"data.{missing}", name, DataError) as caught:
            open_source(data.but(**known), train=missing == "train_split")
        assert "2023, 2024" in caught.value.problem


def test_a_class_can_be_called_train(tmp_path):
    root = tree(tmp_path / "set", "bus", "train")
    source = open_source(Data(source="folder", path=str(root), eval_fraction=0.01), train=True)
    assert source.class_names == ("bus", "train")


def test_folders_that_all_look_like_splits_are_not_classes(tmp_path):
    root = tree(tmp_path / "set", "test", "val")
    with refused("data.train_split", "train", DataError):
        open_source(Data(source="folder", path=str(root)), train=True)


def test_splits_of_a_table_in_any_case(tmp_path):
    tree(tmp_path, "a", "b")
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for kind in "ab":
            rows.writerows([[f"{kind}/0.png", kind, "Training"], [f"{kind}/1.png", kind, "VAL"]])
    data = Data(source="csv", path=str(tmp_path / "table.csv"))
    for side, number in ((True, "0"), (False, "1")):
        source = open_source(data, train=side)
        assert [pathlib.Path(source.describe(i)).stem for i in range(len(source))] == [number] * 2
