"""Class names of data and weights: the same class keeps its meaning, whatever the order of the two lists."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import refused, saved_run
from weights_by_name import SMALLEST, tensors_for

from flax_resnet.config import freeze
from flax_resnet.data.class_order import in_order, same_classes
from flax_resnet.data.sources.arrays import ArraySource
from flax_resnet.errors import ConfigError, DataError
from flax_resnet.inference.classifier import load, load_pretrained
from flax_resnet.inference.evaluation import evaluate_model, with_weights_labels
from flax_resnet.training.pretrained import open_pretrained, read_pretrained
from flax_resnet.training.state import build_model
from flax_resnet.training.teacher import open_teacher
from flax_resnet.weights import imagenet_classes, match_classes, match_logits, write_safetensors

WORDS = [*"abcdefgh", "10", "9", "1", "0"]
NETWORK = {"model": {"name": "resnet20", "depths": (1, 1, 1)}}


def test_names_that_are_numbers_are_in_numerical_order():
    names = [str(number) for number in range(12)]
    assert in_order(sorted(names)) == tuple(names)
    assert in_order(["10", "9", "b"]) == ("10", "9", "b")
    assert in_order(["09", "9", "8"]) == ("8", "09", "9")


def test_any_two_lists_are_matched_by_name_or_refused():
    """2,000 random pairs: each class of the data is that of the weights with its name, or there is a line."""
    draw, refusals, orders = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        own = list(draw.permutation(WORDS)[: draw.integers(2, 7)])
        found = (
            list(draw.permutation(own))
            if draw.random() < 0.5
            else list(draw.permutation(WORDS)[:4])
        )
        found = found[: draw.integers(1, len(found) + 1)] if draw.random() < 0.3 else found
        subset = bool(draw.random() < 0.5)
        match = match_classes(found, own, subset=subset)
        numbered = [list(map(str, range(len(names)))) == names for names in (found, own)]
        if match.problem:
            refusals += 1
            assert match.order == ()
            assert not {*found} <= {*own} or (not subset and len(found) != len(own))
            assert not any(numbered) or len(found) != len(own)
        elif match.note:
            assert any(numbered)
            assert {*found} != {*own}
            assert match.order == tuple(range(len(own)))
        else:
            orders += match.changes_order
            assert [own[index] for index in match.order] == found
    assert refusals > 400
    assert orders > 400


@pytest.mark.parametrize("other", ["cafe\u0301", " caf\u00e9", "caf\u00e9\n"])
def test_names_are_compared_in_one_unicode_form_and_without_blanks(other):
    assert match_classes([other, "b"], ["b", "caf\u00e9"]).order == (1, 0)
    assert match_logits([other, "b"], ["b", "caf\u00e9", "c"], 3).order == (1, 0, 2)
    assert same_classes([other, "b"], ["caf\u00e9", "b"])
    assert not same_classes([other, "b"], ["b", "caf\u00e9"])
    assert match_classes([other, "caf\u00e9"], ["b", "caf\u00e9"]).problem


def test_names_that_occur_twice_are_matched_only_by_equal_lists():
    assert match_classes("aab", "aab").order == (0, 1, 2)
    for data, weights in (("baa", "aab"), ("aa", "ab"), ("ab", "aa"), ("aa", "abc")):
        assert match_classes(data, weights, subset=True).problem
    assert match_logits("aa", "ab", 3).problem


def test_imagenet_classes_have_two_names():
    wnids, words = imagenet_classes()
    assert match_classes(wnids, words).order == tuple(range(1000))
    assert match_classes(wnids[::-1], words).order == tuple(range(999, -1, -1))
    assert match_classes([wnids[7], wnids[3]], words, subset=True).order == (7, 3)
    assert match_classes([wnids[7], wnids[3]], words).problem
    assert match_classes([f"species {n}" for n in range(1000)], words).problem
    assert match_classes([str(n) for n in range(1000)], words).note


def test_logits_without_a_class_of_the_data_get_the_other_classes_of_the_weights():
    assert match_logits("ca", "abc", 3).order == (2, 0, 1)
    assert match_logits("ca", "ab", 2).problem
    assert match_logits("ba", "ab", 4).order == (1, 0, 2, 3)
    assert match_logits("xy", (), 2).note


def source_of(names):
    images = np.zeros((2 * len(names), 8, 8, 3), np.uint8)
    return ArraySource(images, np.arange(len(images)) % len(names), names)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    saved_run(folder, NETWORK, "abc")
    return folder


def test_evaluation_gives_the_data_the_labels_of_the_weights():
    source = with_weights_labels(source_of("cab"), "abc", "mine")
    assert [("abc"[label], image) for image, label in enumerate(source.read(range(6)).labels)] == [
        ("cab"[image % 3], image) for image in range(6)
    ]
    np.testing.assert_array_equal(source.labels(), source.read(range(6)).labels)
    assert with_weights_labels(source_of("ca"), "abc", "mine").labels().tolist() == [2, 0, 2, 0]
    for names in ("abd", "abcd"):
        with refused("--dataset", "mine", DataError):
            with_weights_labels(source_of(names), "abc", "mine")
    unlabelled = source_of("cab")
    unlabelled._labels[4] = -1
    with refused("image 4 of the arrays", kind=DataError):
        with_weights_labels(unlabelled, "abc", "mine").read([4])


def test_a_dataset_with_some_classes_in_another_order_is_evaluated_by_name(photographs, tmp_path):
    file, names = tmp_path / "w.safetensors", ("flower", "zebra", "china")
    write_safetensors(file, tensors_for(SMALLEST, num_classes=3))
    about = {"input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bilinear",
             "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    config = {"architecture": SMALLEST, "num_classes": 3, "pretrained_cfg": about}
    (tmp_path / "w.json").write_text(json.dumps(config | {"label_names": names}))
    result = evaluate_model(SMALLEST, weights=str(file), dataset=str(photographs))
    files = sorted(photographs.rglob("*.jpg"))
    predicted = load_pretrained(SMALLEST, weights=file).predict(files).labels
    expected = np.zeros((3, 3))
    for photograph, guess in zip(files, predicted, strict=True):
        expected[names.index(photograph.parent.name), guess] += 1
    np.testing.assert_array_equal(result.confusion, expected)
    assert result.class_names == names


def test_a_teachers_logits_are_in_the_order_of_the_students_classes(run):
    config = freeze(NETWORK | {"distill": {"teacher": str(run)}})
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    same, other = (open_teacher(config, 3, tuple(names)) for names in ("abc", "cab"))
    straight, mapped = (one.logits(one.variables, images) for one in (same, other))
    np.testing.assert_array_equal(mapped, straight[:, [2, 0, 1]])
    assert same.checksum != other.checksum
    with refused("distill.teacher", str(run), ConfigError):
        open_teacher(config, 3, ("a", "b", "d"))


def test_a_pretrained_head_is_kept_in_the_order_of_the_data_or_fresh(run, caplog):
    config = freeze(NETWORK | {"model": {"name": "", "pretrained": str(run)}})
    weights = open_pretrained(config)
    model = build_model(freeze(NETWORK), 3)

    def head(names):
        return read_pretrained(config, model, weights, tuple(names))["params"]["fc"]

    own = load(run).variables["params"]["fc"]
    for names, order in (("abc", [0, 1, 2]), ("cab", [2, 0, 1])):
        np.testing.assert_array_equal(head(names)["kernel"], np.asarray(own["kernel"])[:, order])
        np.testing.assert_array_equal(head(names)["bias"], np.asarray(own["bias"])[order])
    fresh = head("abd")
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(fresh))
    kept = head("012")  # a dataset whose classes are numbers
    np.testing.assert_array_equal(kept["kernel"], own["kernel"])


def test_a_fresh_head_does_not_change_the_weights_that_were_read(run):
    """The variables of a file can be read again for another dataset."""
    config = freeze(NETWORK | {"model": {"name": "", "pretrained": str(run)}})
    weights, model = open_pretrained(config), build_model(freeze(NETWORK), 3)
    before = {name: array.copy() for name, array in weights.tensors.items()}
    read_pretrained(config, model, weights, ("x", "y", "z"))
    for name, array in weights.tensors.items():
        np.testing.assert_array_equal(array, before[name])
    assert dataclasses.asdict(config)["model"]["pretrained"] == str(run)
