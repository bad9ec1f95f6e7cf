"""What a network says of a photo: the pixels of prediction, heat maps, similar training images; and of exports."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest
from conftest import refused, saved_run
from PIL import Image

from flax_resnet.config import freeze
from flax_resnet.data.open import open_source
from flax_resnet.errors import ConfigError, DataError, ExportError, WeightsError
from flax_resnet.inference.export import export
from flax_resnet.inference.export.export_answers import ExportAnswers
from flax_resnet.inference.file_predictions import predict_files
from flax_resnet.inference.grad_cam import grad_cam
from flax_resnet.inference.network_choice import NetworkChoice
from flax_resnet.inference.photo_answers import NetworkAnswers, network_answers
from flax_resnet.inference.training_images import TrainingImages, training_images
from flax_resnet.training.experiment import make_sampler

SHAPE = {"widths": (4, 8, 16, 32), "depths": (1, 1, 1, 1), "stem": "cifar"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of two classes with 20 photos each of random shapes, one of them broken."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(20):
            height, width = draw.integers(16, 60, 2)
            coarse = draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image.save(root / name / f"{number}.png")
    (root / "cat" / "3.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def network(untrained, photos):
    """The untrained network on the photos, at 32 px with a crop."""
    data = {"source": "folder", "path": str(photos), "image_size": 32, "eval_fraction": 0.2}
    sections = {
        "model": {"name": "resnet18", **SHAPE},
        "data": {**data, "eval_crop": "center", "eval_crop_fraction": 0.8},
        "augment": {"eval_flip": True},
    }
    return dataclasses.replace(untrained, config=freeze(sections))


@pytest.fixture(scope="module")
def answers(network):
    training = training_images(network, most=100)
    training.compute()
    return NetworkAnswers(network, training)


@pytest.fixture(scope="module")
def turned(photos, tmp_path_factory):
    """A photo that its EXIF orientation turns, and the same photo upright."""
    folder, exif = tmp_path_factory.mktemp("turned"), Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos / "cat" / "0.png") as image:
        image.save(folder / "turned.png", exif=exif)
        image.transpose(Image.Transpose.ROTATE_270).save(folder / "upright.png")
    return folder / "turned.png", folder / "upright.png"


def test_an_answer_is_the_prediction_of_the_file(answers, network, turned):
    expected = list(predict_files(network, list(map(str, turned))))
    for file, prediction in zip(turned, expected, strict=True):
        answer = answers.answer(file)
        assert answer.image.shape == (32, 32, 3)
        # TensorFlow resizes for `predict_files`: some pixels differ by one level of 255.
        np.testing.assert_allclose(answer.probabilities, prediction.probabilities, atol=2e-3)
        own = network.predict([file]).probabilities[0]
        np.testing.assert_allclose(answer.probabilities, own, atol=1e-6)
    assert np.ptp(answer.probabilities) > 0.01
    other = answers.answer(network.config.data.path + "/cat/0.png")  # not turned
    assert np.abs(other.probabilities - answer.probabilities).max() > 1e-2
    # All classes, if there are fewer than five.
    assert answers.class_names == ("a", "b", "c")
    assert answer.best() == np.argsort(-answer.probabilities).tolist()
    assert answer.best(1) == [int(answer.probabilities.argmax())]


def test_a_heat_map_is_that_of_the_file_and_the_class(answers, network, turned):
    heats = [answers.heat(turned[0], label) for label in range(3)]
    expected = network.explain([turned[1]] * 3, [0, 1, 2])
    np.testing.assert_allclose(heats, expected, atol=1e-5)
    assert any(heat.any() for heat in heats)
    assert answers.no_heat == ""


def test_near_neighbours_are_training_images_with_their_labels(answers, network):
    source = open_source(network.config.data, train=True)
    names = {source.describe(index) for index in range(len(source))}
    assert answers.training.total == len(source) == answers.training.size
    for index in (1, len(source) - 2):
        file = source.describe(index)
        first, *others = answers.neighbours(answers.answer(file))
        assert first.name == file
        assert first.label == file.split("/")[-2]
        assert first.similarity == pytest.approx(1, abs=1e-4)
        np.testing.assert_array_equal(first.image, answers.answer(file).image)
        assert len(others) == 4
        similarities = [one.similarity for one in others]
        assert similarities == sorted(similarities, reverse=True)
        assert {one.name for one in others} < names
    broken = sum(name.endswith("cat/3.png") for name in names)
    assert answers.training.readable == len(source) - broken


def test_a_photo_outside_the_training_split_is_not_its_own_neighbour(answers, network):
    held_out = open_source(network.config.data, train=False)
    files = {held_out.describe(index) for index in range(len(held_out))}
    near = answers.neighbours(answers.answer(min(files)))
    assert len(near) == 5
    assert not files & {one.name for one in near}


def test_the_sample_is_a_part_of_what_the_run_uses(network):
    limited = network.config.data.but(limit=12)
    few = dataclasses.replace(network, config=dataclasses.replace(network.config, data=limited))
    source = open_source(limited, train=True)
    whole, part, again = (TrainingImages(few, source, most=most) for most in (100, 7, 7))
    assert (whole.total, whole.size, part.total, part.size) == (12, 12, 12, 7)
    for images in (whole, part, again):
        assert not images.is_ready
        assert images.nearest(np.ones(32, np.float32), 5) == ()
        images.compute()
        assert images.done == images.size
        assert images.is_ready
    names = [
        {one.name for one in images.nearest(np.ones(32, np.float32), 100)}
        for images in (whole, part, again)
    ]
    used = {source.describe(int(index)) for index in make_sampler(source, few.config).used}
    assert names[0] == {name for name in used if not name.endswith("cat/3.png")}
    assert names[1] == names[2] < names[0]
    assert len(names[1]) == part.readable


def test_reading_the_training_images_can_be_stopped_and_can_fail(network, photos, monkeypatch):
    training, stop = training_images(network, most=100), threading.Event()
    stop.set()
    training.compute(stop)
    assert (training.done, training.is_ready, training.problem) == (0, False, "")

    source = open_source(network.config.data, train=True)

    def read(indices):
        raise OSError("the disk is gone")

    monkeypatch.setattr(source, "read", read)
    training = TrainingImages(network, source, most=5)
    training.compute()
    assert not training.is_ready
    assert training.problem == "the disk is gone"
    with refused("data.path", kind=DataError):
        gone = network.config.data.but(path=str(photos / "none"))
        config = dataclasses.replace(network.config, data=gone)
        training_images(dataclasses.replace(network, config=config), most=5)


def test_a_run_whose_training_images_are_lost_answers_without_neighbours(tmp_path, turned, photos):
    sections = {
        "model": {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"},
        "data": {"source": "folder", "path": str(photos), "image_size": 32},
    }
    run = saved_run(tmp_path / "run", sections, ("cat", "dog"), step=7)
    choice = NetworkChoice(workdir=str(run))
    found, none = (network_answers(choice, most=most) for most in (3, 0))
    assert (found.training.size, found.no_neighbours, found.classifier.step) == (3, "", 7)
    assert (none.training, none.no_neighbours) == (None, "")
    sections["data"]["path"] = str(tmp_path / "gone")
    run = saved_run(tmp_path / "other", sections, ("cat", "dog"))
    lost = network_answers(NetworkChoice(workdir=str(run)), most=3)
    assert lost.training is None
    assert lost.no_neighbours
    assert lost.neighbours(lost.answer(turned[0])) == ()


def test_what_has_no_answer_is_refused(answers, network, tmp_path, monkeypatch):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    for call in (answers.answer, lambda file: answers.heat(file, 0)):
        with refused(broken, kind=DataError):
            call(broken)
    file = network.config.data.path + "/cat/0.png"
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # twice as many are an error of Pillow
        with refused(file, kind=DataError):
            answers.answer(file)
    with refused("model", kind=ConfigError):
        model = network.model.clone(num_classes=0)
        NetworkAnswers(dataclasses.replace(network, model=model))
    infinite = jax.tree.map(lambda x: np.full_like(x, np.nan), network.variables)
    with refused("weights", kind=WeightsError):
        NetworkAnswers(dataclasses.replace(network, variables=infinite))


def test_a_network_without_heat_maps_says_so(network, turned, monkeypatch):
    from flax_resnet.inference import heat_maps

    def no_map(*args):
        raise ConfigError("has no map", key="model")

    assert heat_maps.grad_cam is grad_cam
    monkeypatch.setattr(heat_maps, "grad_cam", no_map)
    plain = NetworkAnswers(dataclasses.replace(network), no_neighbours="none here")
    assert "has no map" in plain.no_heat
    assert plain.no_neighbours == "none here"
    answer = plain.answer(turned[0])
    assert answer.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert plain.neighbours(answer) == ()


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("stablehlo", {}),
        ("stablehlo", {"preprocessing": "normalize", "softmax": True, "batch_size": 2}),
        ("onnx", {"preprocessing": "resize"}),
        ("onnx", {}),
    ],
    ids=["plain", "normalize", "resize", "channels first"],
)
def test_an_exported_model_answers_as_its_network(
    answers, network, turned, tmp_path, format, options
):
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="needs pip install onnx onnxruntime")
    folder = export(network, tmp_path / "net", format, **options)
    exported = ExportAnswers(folder)
    assert (exported.format, exported.class_names) == (format, answers.class_names)
    assert exported.training is None
    assert exported.no_heat
    assert exported.no_neighbours
    for file in turned:
        answer, expected = exported.answer(file), answers.answer(file)
        # Pixels that a model resizes itself differ by a level at most.
        near = 5e-3 if options.get("preprocessing") == "resize" else 1e-5
        np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=near)
        np.testing.assert_array_equal(answer.image, expected.image)
        assert exported.neighbours(answer) == ()
    with refused("model", kind=ConfigError):
        exported.heat(turned[0], 0)


def test_an_exported_model_knows_whether_photos_are_turned(network, turned, tmp_path):
    config = dataclasses.replace(network.config, data=network.config.data.but(exif=False))
    exported = ExportAnswers(
        export(dataclasses.replace(network, config=config), tmp_path / "net", "stablehlo")
    )
    stored, upright = (exported.answer(file).probabilities for file in turned)
    assert np.abs(stored - upright).max() > 1e-2


def test_a_damaged_export_is_refused(network, tmp_path):
    folder = export(network, tmp_path / "net", "stablehlo")
    with refused(tmp_path, kind=ExportError):
        ExportAnswers(tmp_path)
    about = json.loads((folder / "config.json").read_text())
    del about["export"]["exif"]
    (folder / "config.json").write_text(json.dumps(about))
    with refused(folder / "config.json", kind=ExportError):
        ExportAnswers(folder)
