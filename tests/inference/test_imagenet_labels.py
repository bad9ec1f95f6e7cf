"""Other labels of ImageNet, in the formats of the published files: ImageNet-ReaL's list, ImageNet-V2's folders."""

import json

import numpy as np
import pytest
from conftest import refused
from PIL import Image
from weights_by_name import SMALLEST, tensors_for

from flax_resnet.cli import commands
from flax_resnet.data.real_labels import read_real_labels
from flax_resnet.errors import ConfigError, DataError
from flax_resnet.inference.classifier import load_pretrained
from flax_resnet.inference.evaluation import evaluate_model
from flax_resnet.inference.real_accuracy import real_labels_of
from flax_resnet.weights import imagenet_classes, match_classes, write_safetensors

INDICES = [str(number) for number in range(1000)]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A weights file of a small network with ImageNet's 1000 classes, for images of 32 pixels."""
    file = tmp_path_factory.mktemp("weights") / "thousand.safetensors"
    tensors = tensors_for(SMALLEST)
    about = {"input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bilinear",
             "mean": [0.5] * 3, "std": [0.2] * 3}  # fmt: skip
    config = {"architecture": SMALLEST, "num_classes": 1000, "pretrained_cfg": about}
    file.with_suffix(".json").write_text(json.dumps(config))
    write_safetensors(file, tensors)
    noise = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3)).astype(np.uint8)
    features = load_pretrained(SMALLEST, weights=file).features(noise)["pre_logits"]
    common = np.linalg.svd(features, full_matrices=False)[2][:1]
    # Without what all images have in common, the predictions differ.
    tensors["fc.weight"] -= tensors["fc.weight"] @ common.T @ common
    tensors["fc.bias"][:] = 0
    write_safetensors(file, tensors)
    return file


def paint(file, number):
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((32, 32)).save(file, "PNG")


@pytest.fixture
def validation(tmp_path):
    """Six of ImageNet's validation images, in folders named by WordNet ids; number 4 is not among them."""
    root, wnids = tmp_path / "val", imagenet_classes()[0]
    for number in (7, 1, 3, 2, 6, 5):
        folder = wnids[600 - 100 * (number % 3)]
        end = f"_{folder}" if number == 2 else ""  # as in some copies
        paint(root / folder / f"ILSVRC2012_val_{number:08}{end}.JPEG", number)
    return root


def test_real_labels_count_any_of_an_images_labels(validation, imagenet, tmp_path, capsys):
    """Right by one of several labels, wrong, without labels: by the number in the name, not by the position."""
    files = sorted(validation.rglob("*.JPEG"))
    guesses = load_pretrained(SMALLEST, weights=imagenet).predict(files).labels
    assert len({*guesses}) > 2
    guess = {int(f.stem[15:23]): int(g) for f, g in zip(files, guesses, strict=True)}
    other = {number: (found + 1) % 1000 for number, found in guess.items()}
    labels = [
        [other[1], guess[1]], [guess[2]], [other[3]], [0], [], [guess[6], 7], [other[7], 3],
    ]  # fmt: skip
    file = tmp_path / "real.json"
    file.write_text(json.dumps(labels))
    options = {"weights": str(imagenet), "dataset": str(validation), "real_labels": str(file)}
    flags = [f"--model={SMALLEST}", *(f"--{key}={value}" for key, value in options.items())]
    assert commands.main(["evaluate", *flags]) == 0
    real = next(line for line in capsys.readouterr().out.splitlines() if "ReaL" in line)
    assert "60.00%" in real
    assert "5 images" in real


def test_real_labels_of_other_images_are_refused(validation, imagenet, tmp_path):
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[1]] * 7))
    options = {"dataset": str(validation), "real_labels": str(file)}
    odd = validation / imagenet_classes()[0][0] / "cat.jpeg"
    paint(odd, 0)
    for name in (
        "cat.jpeg",
        "ILSVRC2012_val_00000007.JPEG",  # twice
        "ILSVRC2012_val_00000008.JPEG",  # more images than labels
    ):
        odd = odd.rename(odd.with_name(name))
        with refused(name, kind=DataError):
            evaluate_model(SMALLEST, weights=str(imagenet), **options)
    with refused("--real_labels", str(file), ConfigError):  # a network of two classes
        real_labels_of((), ("cat", "dog"), str(file))


@pytest.mark.parametrize("text", ["{", "{}", "[]", "[1, 2]", "[[1000]]", "[[-1]]", "[[true]]"])
def test_a_file_of_another_format_is_refused(text, tmp_path):
    file = tmp_path / "real.json"
    file.write_text(text)
    with refused("--real_labels", str(file), DataError):
        read_real_labels(str(file), "--real_labels")


def test_tfds_names_the_files_of_its_images(tmp_path):
    """As imagenet2012 does, whose records are shuffled; digits have no names."""
    import tensorflow_datasets as tfds

    from flax_resnet.data.data_section import Data
    from flax_resnet.data.open import open_source

    names = [f"ILSVRC2012_val_{number:08}.JPEG" for number in (3, 1, 2)]
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["a", "b"]),
        "file_name": tfds.features.Text(),
    })  # fmt: skip
    blank = np.zeros((4, 4, 3), np.uint8)
    rows = [
        (number, {"image": blank, "label": 0, "file_name": name})
        for number, name in enumerate(names)
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        "named", "1.0.0", features=features, split_datasets={"validation": rows},
        data_dir=tmp_path, disable_shuffling=True, file_format="array_record",
    )  # fmt: skip
    data = Data(name="named", data_dir=str(tmp_path), eval_split="validation")
    assert [*open_source(data, train=False).file_names()] == names


@pytest.mark.slow
def test_the_folders_of_imagenet_v2_are_indices(imagenet, tmp_path, capsys):
    """As text, '10' is before '2': the class of each image is the number, not the position of its folder."""
    files = [tmp_path / "v2" / index / "0123.jpeg" for index in INDICES]
    for number, file in enumerate(files):
        paint(file, number)
    guesses = load_pretrained(SMALLEST, weights=imagenet).predict(files).labels
    assert len({*guesses}) > 20
    # One batch: the counts of 1000 classes take 36 MB on each of the eight devices.
    data = {"dataset": str(tmp_path / "v2"), "batch_size": 1000}
    result = evaluate_model(SMALLEST, weights=str(imagenet), **data)
    expected = np.zeros((1000, 1000))
    expected[np.arange(1000), guesses] = 1
    np.testing.assert_array_equal(result.confusion, expected)


def test_numbers_are_indices_of_imagenets_classes_only_if_all_are_there():
    wnids, words = imagenet_classes()
    for own in (wnids, words):
        as_text = sorted(INDICES)
        assert match_classes(as_text, own).order == tuple(map(int, as_text))
        assert match_classes(INDICES, own).order == tuple(range(1000))
        from_one = [str(number) for number in range(1, 1001)]
        for names in (from_one, INDICES[:10], [*INDICES, "1000"], ["7", *INDICES[1:]]):
            assert match_classes(names, own, subset=True).problem
            assert match_classes(names, own).order == ()
    others = [f"species {number}" for number in range(1000)]
    assert match_classes(sorted(INDICES), others).problem
