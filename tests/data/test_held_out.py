"""Which files are held out for evaluation."""

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from flax_resnet.data import folder_listing
from flax_resnet.data.data_section import Data
from flax_resnet.data.held_out import held_out
from flax_resnet.data.open import open_source
from flax_resnet.errors import DataError


def random_files(draw):
    counts = draw.integers(1, 7, 30)
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return [f"{label}/{draw.integers(10**9)}.jpg" for label in labels], labels


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_every_class_of_two_files_is_on_both_sides(share):
    draw = np.random.default_rng(0)
    for seed in range(20):
        names, labels = random_files(draw)
        held = held_out(names, labels, share, seed)
        for label in set(labels):
            own = held[labels == label]
            assert own.sum() == 0 if len(own) == 1 else 0 < own.sum() < len(own)


def test_the_share_of_many_files_is_that_of_the_setting():
    names = [f"{number}.jpg" for number in range(20_000)]
    for share in (0.05, 0.2):
        assert abs(held_out(names, np.zeros(20_000, np.int32), share, 0).mean() - share) < 0.01
    assert not held_out(names, np.zeros(20_000, np.int32), 0, 0).any()
    assert held_out(names, np.zeros(20_000, np.int32), 1, 0).all()


def test_a_new_file_moves_at_most_one_file_of_a_class_that_had_only_that_one():
    draw, moved = np.random.default_rng(1), 0
    for _ in range(300):
        names = [f"{draw.integers(10**9)}.jpg" for _ in range(draw.integers(2, 9))]
        before = held_out(names, np.zeros(len(names), np.int32), 0.2, 0)
        after = held_out([*names, "new.jpg"], np.zeros(len(names) + 1, np.int32), 0.2, 0)[:-1]
        changed = np.flatnonzero(before != after)
        assert len(changed) <= 1
        if len(changed):
            assert before.sum() == 1 or (~before).sum() == 1
            moved += 1
    assert moved > 0


def test_equal_names_and_other_unicode_forms_are_on_one_side():
    labels = np.zeros(4, np.int32)
    held = held_out(["a.jpg", "b.jpg", "a.jpg", "b.jpg"], labels, 0.5, 0)
    assert held[0] == held[2] != held[1] == held[3]
    composed, split = ([f"{n}{name}.jpg" for n in range(40)] for name in ("\u00e9", "e\u0301"))
    labels = np.zeros(40, np.int32)
    np.testing.assert_array_equal(
        held_out(composed, labels, 0.5, 0), held_out(split, labels, 0.5, 0)
    )


def test_classes_with_one_image_train_and_are_named(tmp_path, caplog):
    folder_listing.log_once.cache_clear()
    counts = {"many": 9, "one": 1, "two": 2, "uno": 1}
    for kind, count in counts.items():
        (tmp_path / kind).mkdir()
        for number in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / kind / f"{number}.png")
    data = Data(source="folder", path=str(tmp_path))
    train, held = (open_source(data, train=side) for side in (True, False))
    assert {*train.labels()} == {0, 1, 2, 3}
    assert {*held.labels()} == {0, 2}
    (line,) = [record.getMessage() for record in caplog.records]
    for part in ("2 of 4", "one", "uno"):
        assert part in line
    for kind in ("many", "two"):
        for file in (tmp_path / kind).iterdir():
            file.unlink()
        Image.new("RGB", (4, 4)).save(tmp_path / kind / "0.png")
    with refused("data.path", str(tmp_path), DataError):  # too few images to evaluate on
        open_source(data, train=False)
