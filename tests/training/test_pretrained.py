"""Weights from other sources: loading them in Python, and training from them."""

import json
import pathlib

import jax
import numpy as np
import pytest
from conftest import refused
from weights_by_name import SMALLEST, tensors_for

import flax_resnet
from flax_resnet import create_model, load_pretrained, main
from flax_resnet.cli import commands
from flax_resnet.errors import ConfigError, WeightsError
from flax_resnet.weights import read_tensors, write_safetensors


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A file with the weights of a network for ImageNet's classes."""
    file = tmp_path_factory.mktemp("weights") / "thousand.safetensors"
    write_safetensors(file, tensors_for(SMALLEST))
    return file


def test_load_pretrained_sets_the_preprocessing_and_class_names(thousand, pictures):
    classifier = load_pretrained(SMALLEST, weights=thousand)
    data, augment = classifier.config.data, classifier.config.augment
    assert (data.image_size, data.eval_crop_fraction, data.interpolation) == (160, 0.95, "bilinear")
    assert augment.mean == augment.std == (0.5, 0.5, 0.5)
    assert classifier.class_names[:2] == ("tench", "goldfish")
    prediction = classifier.predict(pictures)
    assert prediction.probabilities.shape == (3, 1000)
    found = classifier.features(pictures, ("stage2", "pre_logits", "logits"))
    assert {k: v.shape for k, v in found.items()} == {
        "stage2": (3, 20, 20, 48), "pre_logits": (3, 96), "logits": (3, 1000),
    }  # fmt: skip
    np.testing.assert_array_equal(found["logits"].argmax(1), prediction.labels)
    # The prediction for an image does not depend on the number of images.
    one = classifier.predict(pictures[0])
    np.testing.assert_allclose(one.probabilities[0], prediction.probabilities[0], atol=1e-6)
    with refused("batch_size", 0, ConfigError):
        classifier.predict(pictures, batch_size=0)
    with refused("features", "stage11", ConfigError) as error:
        classifier.features(pictures, ("stage11",))
    assert "stage1" in error.value.allowed


def test_the_head_and_the_stem_are_adapted_only_on_request(thousand, weights, pictures):
    tensors = read_tensors(thousand)
    fresh = load_pretrained(SMALLEST, weights=thousand, num_classes=7)
    assert fresh.variables["params"]["fc"]["kernel"].shape == (96, 7)
    assert fresh.class_names == tuple("0123456")
    kept = np.asarray(fresh.variables["params"]["layer4_0"]["conv1"]["kernel"])
    np.testing.assert_array_equal(kept, tensors["layer4.0.conv1.weight"].transpose(2, 3, 1, 0))
    same = load_pretrained(SMALLEST, weights=weights, num_classes=2)
    np.testing.assert_array_equal(
        same.variables["params"]["fc"]["kernel"], read_tensors(weights)["fc.weight"].T
    )
    grey = load_pretrained(SMALLEST, weights=weights, in_channels=1)
    stem = tensors["conv1.0.weight"].sum(1, keepdims=True).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(grey.variables["params"]["conv1_0"]["kernel"], stem, rtol=1e-6)
    assert grey.predict(pictures).probabilities.shape == (3, 2)
    for channels in (2, 4, 0):  # no image could be prepared
        with refused("in_channels", channels, ConfigError):
            load_pretrained(SMALLEST, weights=weights, in_channels=channels)
    headless = load_pretrained(SMALLEST, weights=weights, num_classes=0)
    assert headless.features(pictures)["pre_logits"].shape == (3, 96)
    with refused("names", (), ConfigError):
        headless.features(pictures, ())
    mapped = load_pretrained(SMALLEST, weights=weights, num_classes=0, global_pool="none")
    assert mapped.features(pictures, "pre_logits")["pre_logits"].shape == (3, 5, 5, 96)
    from flax_resnet.weights.fill import fill

    for options, cure, found in (
        ({"num_classes": 7}, "num_classes=7", "1000 classes"),
        ({"in_channels": 4}, "in_channels=4", "3 channels"),
    ):
        with refused("weights", kind=WeightsError) as error:
            fill(create_model(SMALLEST, **options), tensors)
        assert cure in error.value.cure
        assert found in error.value.cure


def test_weights_of_a_grey_network_are_converted(tmp_path):
    file, run = tmp_path / "grey.safetensors", tmp_path / "run"
    write_safetensors(file, tensors_for(SMALLEST, num_classes=2, in_channels=1))
    assert commands.main(["convert", str(file), str(run), "--model", SMALLEST]) == 0
    assert flax_resnet.load(run).model.in_channels == 1


@pytest.mark.parametrize("channels", [2, 4])
def test_weights_for_images_of_other_channels_are_refused(channels, tmp_path):
    file = tmp_path / "more.safetensors"
    write_safetensors(file, tensors_for(SMALLEST, num_classes=2, in_channels=channels))
    with refused("weights", str(file), WeightsError) as caught:
        load_pretrained(SMALLEST, weights=file)
    assert f" {channels} " in caught.value.problem


def test_the_content_of_a_file_decides_and_not_its_suffix(weights, tmp_path, monkeypatch):
    from flax.serialization import to_bytes

    from flax_resnet.training.pretrained import is_file

    monkeypatch.chdir(tmp_path)
    content = weights.read_bytes()
    expected = load_pretrained(SMALLEST, weights=weights).variables
    for name in ("model_best.pth.tar", "last.CKPT", "weights"):
        assert is_file(name) == (name != "weights")  # that could be a name on the hub
        pathlib.Path(name).write_bytes(content)
        assert is_file(name)
        read = load_pretrained(SMALLEST, weights=name).variables
        jax.tree.map(np.testing.assert_array_equal, read, expected)
    pathlib.Path("w.msgpack").write_bytes(to_bytes(expected))
    read = load_pretrained(SMALLEST, weights="w.msgpack").variables
    jax.tree.map(np.testing.assert_array_equal, read, expected)
    pathlib.Path("runs.pt").mkdir()
    assert not is_file("runs.pt")
    for name in ("absent.th", "absent.pkl", "absent.PTH", "absent.msgpack"):
        assert is_file(name)
        with refused(name, ..., WeightsError):
            load_pretrained(SMALLEST, weights=name)


def test_a_scanned_network_takes_the_same_weights(pictures, tmp_path):
    file = tmp_path / "w.safetensors"
    options = {"depths": (1, 3), "widths": (8, 16), "num_classes": 3}
    write_safetensors(file, tensors_for("resnet18", **options))
    options.pop("num_classes")
    plain, scanned = (
        load_pretrained("resnet18", weights=file, scan_blocks=scan, **options)
        for scan in (False, True)
    )
    assert "layer2_rest" in scanned.variables["params"]
    expected = plain.predict(pictures).probabilities
    np.testing.assert_allclose(scanned.predict(pictures).probabilities, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "key", "kind", "cure"),
    [
        ("resnet81", "model.name", ConfigError, "'resnet18'"),
        ("resnet50.a1_in2k", "name", WeightsError, "'a1_in1k'"),
        ("vgg11", "name", WeightsError, "a file of weights"),
        ("resnet200", "name", WeightsError, ""),
    ],
)
def test_an_unknown_name_of_weights_is_one_line(name, key, kind, cure):
    with refused(key, name, kind) as error:
        load_pretrained(name)
    assert cure in error.value.cure


def test_weights_of_the_hub_come_from_its_cache(thousand, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--timm--test_resnet.r160_in1k"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (snapshot / "model.safetensors").write_bytes(thousand.read_bytes())
    about = {
        "input_size": [3, 96, 96], "crop_pct": 0.9, "interpolation": "bicubic", "tag": "r160_in1k",
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    }  # fmt: skip
    config = {"architecture": SMALLEST, "num_classes": 1000, "pretrained_cfg": about}
    (snapshot / "config.json").write_text(json.dumps(config))
    for name in (SMALLEST, "test_resnet.r160_in1k"):
        classifier = load_pretrained(name)
        assert (
            classifier.config.data.image_size == 96
        )  # from the weights' own config.json, not from our table
        assert classifier.config.augment.mean == (0.1, 0.2, 0.3)


@pytest.mark.slow
def test_training_starts_from_weights(photographs, tmp_path, cache_dir, capsys):
    """The head is fresh, and all other weights come from the file. Resuming does not need the file."""
    file = tmp_path / "w.safetensors"
    widths = {"widths": (4, 8, 8, 8)}
    write_safetensors(file, tensors_for("resnet18", num_classes=5, **widths))
    workdir = tmp_path / "run"
    arguments = [
        f"--config=resnet18:folder={photographs}", f"--workdir={workdir}", "--config.model.widths=(4,8,8,8)",
        "--config.data.image_size=32", "--config.train.batch_size=8", "--config.train.epochs=1",
        "--config.schedule.warmup=0", f"--compilation_cache={cache_dir}",
        f"--config.model.pretrained={file}", "--config.optimizer.learning_rate=1e-30",
        "--config.augment.mean=(0.5,0.5,0.5)",
    ]  # fmt: skip
    assert main.main([*arguments, "--dry_run"]) == 0
    assert main.main(arguments) == 0
    err = capsys.readouterr().err
    assert "a fresh head of 2 classes in place of its 5" in err
    assert "was trained with augment.mean=(0.485" in err
    params = flax_resnet.load(workdir).variables["params"]
    kernel = read_tensors(file)["layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["layer2_0"]["conv1"]["kernel"], kernel)
    assert params["fc"]["kernel"].shape == (8, 2)
    file.unlink()
    assert main.main([*arguments, "--config.train.epochs=2"]) == 0
    assert "going on from checkpoint" in capsys.readouterr().err
    other = [a.replace(str(workdir), str(tmp_path / "other")) for a in arguments]
    assert main.main(other) == 2
    assert "no such file" in capsys.readouterr().err
    assert main.main([*other, "--config.model.pretrained=resnet50.a1_in1k"]) == 2
    assert "is of resnet50, not of model.name='resnet18'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["norm_scope=local"],
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                ["norm=group"],
                ["norm=frozen"],
                ["norm_scope=ghost", "norm_groups=4"],
                ["in_channels=1"],
                ["drop_path=0.2", "dropout=0.1", "remat=block", "attention=se", "act=silu"],
                ["name=wrn16_4", "shortcut=average", "dropout=0.3"],
            )
        ),
    ],
    ids=" ".join,
)
def test_networks_with_every_kind_of_option_train(options, tiny, tmp_path):
    arguments = [*tiny, *(f"--config.model.{option}" for option in options)]
    if "in_channels=1" in options:
        arguments += ["--config.augment.mean=(0.3,)", "--config.augment.std=(0.37,)"]
    run = tmp_path / "run"
    assert main.main([*arguments, "--config.train.epochs=1", f"--workdir={run}"]) == 0
    image = np.zeros((1, 8, 8, 3), np.uint8)
    assert flax_resnet.load(run).predict(image).labels.shape == (1,)
