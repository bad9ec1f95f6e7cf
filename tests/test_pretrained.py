"""Weights made elsewhere: loaded from Python, converted, evaluated and trained on, through the commands."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights_by_name import tensors_of

import flax_resnet
from flax_resnet import cli, create_model, load_pretrained, main
from flax_resnet.errors import ConfigError, WeightsError
from flax_resnet.weights import read_tensors, to_torch, write_safetensors

NAME = "test_resnet"  # timm's smallest, 469,688 parameters


def tensors_for(name, **options):
    """Weights for a network as torch would name them."""
    model = create_model(name, **options)
    image = jnp.zeros((1, 32, 32, model.in_channels))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    return tensors_of({name: x.shape for name, x in to_torch(empty).items()})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of two classes."""
    file = tmp_path_factory.mktemp("weights") / "two.safetensors"
    write_safetensors(file, tensors_for(NAME, num_classes=2))
    return file


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A file of weights of ImageNet's classes."""
    file = tmp_path_factory.mktemp("weights") / "thousand.safetensors"
    write_safetensors(file, tensors_for(NAME))
    return file


@pytest.fixture
def pictures(photographs):
    return sorted(photographs.rglob("*.jpg"))[:3]


def test_load_pretrained_brings_the_preprocessing_and_class_names(thousand, pictures):
    classifier = load_pretrained(NAME, weights=thousand)
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
    # Every number of images gives the same answer for one of them.
    one = classifier.predict(pictures[0])
    np.testing.assert_allclose(one.probabilities[0], prediction.probabilities[0], atol=1e-6)
    with pytest.raises(ConfigError, match="batch_size=0"):
        classifier.predict(pictures, batch_size=0)
    with pytest.raises(ConfigError, match="did you mean 'stage1'"):
        classifier.features(pictures, ("stage11",))


def test_the_head_and_the_stem_are_adapted_only_when_asked(thousand, weights, pictures):
    tensors = read_tensors(thousand)
    fresh = load_pretrained(NAME, weights=thousand, num_classes=7)
    assert fresh.variables["params"]["fc"]["kernel"].shape == (96, 7)
    assert fresh.class_names == tuple("0123456")
    kept = np.asarray(fresh.variables["params"]["layer4_0"]["conv1"]["kernel"])
    np.testing.assert_array_equal(kept, tensors["layer4.0.conv1.weight"].transpose(2, 3, 1, 0))
    same = load_pretrained(NAME, weights=weights, num_classes=2)
    np.testing.assert_array_equal(
        same.variables["params"]["fc"]["kernel"], read_tensors(weights)["fc.weight"].T
    )
    grey = load_pretrained(NAME, weights=weights, in_channels=1)
    stem = tensors["conv1.0.weight"].sum(1, keepdims=True).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(grey.variables["params"]["conv1_0"]["kernel"], stem, rtol=1e-6)
    assert grey.predict(pictures).probabilities.shape == (3, 2)
    headless = load_pretrained(NAME, weights=weights, num_classes=0)
    assert headless.features(pictures)["pre_logits"].shape == (3, 96)
    with pytest.raises(ConfigError, match="no features asked for"):
        headless.features(pictures, ())
    mapped = load_pretrained(NAME, weights=weights, num_classes=0, global_pool="none")
    assert mapped.features(pictures, "pre_logits")["pre_logits"].shape == (3, 5, 5, 96)
    from flax_resnet.training.pretrained import fill

    with pytest.raises(WeightsError, match="num_classes=7 asks for a fresh head instead of 1000"):
        fill(create_model(NAME, num_classes=7), tensors)
    with pytest.raises(WeightsError, match="in_channels=4 adapts the stem from 3 channels"):
        fill(create_model(NAME, in_channels=4), tensors)


def test_a_grey_network_goes_out_and_back(tmp_path):
    file, run = tmp_path / "grey.safetensors", tmp_path / "run"
    write_safetensors(file, tensors_for(NAME, num_classes=2, in_channels=1))
    assert cli.main(["convert", str(file), str(run), "--model", NAME]) == 0
    assert flax_resnet.load(run).model.in_channels == 1


def test_a_scanned_network_takes_the_same_weights(pictures, tmp_path):
    file = tmp_path / "w.safetensors"
    options = {"depths": (1, 3), "widths": (8, 16), "num_classes": 3}
    write_safetensors(file, tensors_for("resnet18", **options))
    options.pop("num_classes")
    plain, scanned = (
        load_pretrained("resnet18", weights=file, scan=scan, **options) for scan in (False, True)
    )
    assert "layer2_rest" in scanned.variables["params"]
    expected = plain.predict(pictures).probabilities
    np.testing.assert_allclose(scanned.predict(pictures).probabilities, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", "did you mean 'resnet18'"),
        ("resnet50.a1_in2k", "did you mean 'a1_in1k'"),
        ("vgg11", "give a file of weights"),
        ("resnet200", "no pretrained weights for 'resnet200'"),
    ],
)
def test_a_wrong_name_is_one_line(name, words):
    with pytest.raises((ConfigError, WeightsError)) as error:
        load_pretrained(name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


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
    config = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": about}
    (snapshot / "config.json").write_text(json.dumps(config))
    for name in (NAME, "test_resnet.r160_in1k"):
        classifier = load_pretrained(name)
        assert classifier.config.data.image_size == 96  # what came with them counts, not our table
        assert classifier.config.augment.mean == (0.1, 0.2, 0.3)


def test_from_torchs_layout_to_a_run_and_back(weights, pictures, tmp_path, capsys):
    run, back = tmp_path / "run", tmp_path / "back.safetensors"
    assert cli.main(["convert", str(weights), str(run), "--model", NAME]) == 0
    assert f'flax_resnet.load("{run}")' in capsys.readouterr().out
    classifier = flax_resnet.load(run)
    expected = load_pretrained(NAME, weights=weights).predict(pictures).probabilities
    np.testing.assert_allclose(classifier.predict(pictures).probabilities, expected, atol=1e-6)
    assert classifier.config.data.image_size == 160

    assert cli.main(["convert", str(run), str(back)]) == 0
    assert "tensors of test_resnet" in capsys.readouterr().out
    ours, theirs = read_tensors(back), read_tensors(weights)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)
    # What lies beside the file brings the preprocessing back.
    sidecar = tmp_path / "back.json"
    about = json.loads(sidecar.read_text())
    about["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    about["label_names"] = ["no", "yes"]
    sidecar.write_text(json.dumps(about))
    again = load_pretrained(NAME, weights=back)
    assert again.config.augment.mean == (0.1, 0.2, 0.3)
    assert again.class_names == ("no", "yes")


@pytest.mark.slow
def test_a_trained_run_in_torchs_layout(data_dir, cache_dir, tmp_path, capsys):
    """Trained with options, scanned too: what timm cannot guess is said."""
    run, file = tmp_path / "run", tmp_path / "run.safetensors"
    arguments = [
        "--config=resnet18", "--config.model.widths=(4,8,8,8)", "--config.model.depths=(1,3,1,1)",
        "--config.model.scan=True", "--config.train.batch_size=240", "--config.train.epochs=1",
        "--config.schedule.warmup=0", "--config.train.eval_batch_size=360",
        f"--data_dir={data_dir}", f"--compilation_cache={cache_dir}", f"--workdir={run}",
    ]  # fmt: skip
    assert main.main(arguments) == 0
    assert cli.main(["convert", str(run), str(file)]) == 0
    assert "depths=(1, 3, 1, 1)" in capsys.readouterr().out
    again = load_pretrained(
        "resnet18", weights=file
    )  # options and crop come back by the file beside it
    assert again.config.model.depths == (1, 3, 1, 1)
    assert again.config.data.eval_crop == "resize"
    image = np.random.RandomState(0).randint(0, 256, (2, 8, 12, 3)).astype(np.uint8)
    expected = flax_resnet.load(run).predict(image).probabilities
    np.testing.assert_allclose(again.predict(image).probabilities, expected, atol=1e-5)
    tensors = read_tensors(file)
    assert tensors["layer2.2.conv1.weight"].shape == (8, 8, 3, 3)
    assert not any("rest" in name for name in tensors)
    classifier = flax_resnet.load(run)
    stacked = classifier.variables["params"]["layer2_rest"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        stacked[1], tensors["layer2.2.conv1.weight"].transpose(2, 3, 1, 0)
    )


def test_evaluate_a_model_on_a_folder(weights, photographs, cache_dir, capsys):
    arguments = [
        "evaluate", "--model", NAME, "--weights", str(weights), "--dataset", str(photographs),
        "--image_size=32", f"--compilation_cache={cache_dir}",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "top-5 100.00%" in line
    assert line.endswith(", test_resnet")
    # The same by hand: every image of the folder, through predict.
    classifier = load_pretrained(NAME, weights=weights)
    data = dataclasses.replace(classifier.config.data, image_size=32)
    config = dataclasses.replace(classifier.config, data=data)
    small = dataclasses.replace(classifier, config=config)
    files = sorted(photographs.rglob("*.jpg"))
    labels = np.array([file.parent.name == "flower" for file in files])
    top1 = (small.predict(files).labels == labels).mean()
    assert f"top-1 {top1:.2%}," in line
    assert "(12 images)" in line
    assert cli.main([*arguments, "--split=train"]) == 2
    assert "has no splits" in capsys.readouterr().err


def test_a_converted_run_takes_imagenets_ids_for_its_words():
    from flax_resnet.errors import DataError
    from flax_resnet.evaluate import _check_classes
    from flax_resnet.weights import imagenet_classes

    wnids, words = imagenet_classes()
    _check_classes(wnids, words, "imagenet2012")
    with pytest.raises(DataError, match="another order"):
        _check_classes(wnids[::-1], words, "imagenet2012")
    with pytest.raises(DataError, match="has 2 classes, the weights 1000"):
        _check_classes(("a", "b"), words, "mine")


def test_class_names_of_the_weights_must_be_those_of_the_data(
    weights, photographs, tmp_path, capsys
):
    file = tmp_path / "w.safetensors"
    file.write_bytes(weights.read_bytes())
    about = {"input_size": [3, 32, 32], "crop_pct": 1.0, "interpolation": "bilinear",
             "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    config = {"architecture": NAME, "num_classes": 2, "pretrained_cfg": about}
    sidecar = tmp_path / "w.json"
    arguments = ["evaluate", "--model", NAME, "--weights", str(file), "--dataset", str(photographs)]
    sidecar.write_text(json.dumps({**config, "label_names": ["china", "zebra"]}))
    assert cli.main(arguments) == 2
    assert "has the class 'flower' where the weights have 'zebra'" in capsys.readouterr().err
    for key, value in (
        ("interpolation", "lanczos"),
        ("crop_pct", 1.3),
        ("mean", []),
        ("crop_mode", "x"),
    ):
        sidecar.write_text(json.dumps({**config, "pretrained_cfg": {**about, key: value}}))
        assert cli.main(["convert", str(file), str(tmp_path / "run"), "--model", NAME]) == 2
        assert key in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate"], "--workdir or --model is needed"),
        (["evaluate", "--model=x", "--workdir=y"], "one only"),
        (["evaluate", "--workdir=y", "--dataset=z"], "--dataset=z: goes with --model"),
        (["evaluate", "--model=test_resnet"], "--dataset is needed"),
        (["evaluate", "--model=test_resnet", "--weights=WEIGHTS", "--dataset=./nowhere"], "neither a folder"),
        (["evaluate", "--model=test_resnet", "--weights=WEIGHTS", "--dataset=digits", "--data_dir=TMP",
          "--split=test"], "digits has 10 classes, the weights 2"),
        (["evaluate", "--model=resnet18", "--weights=WEIGHTS", "--dataset=digits"], "do not fit"),
        (["evaluate", "--model=test_resnet", "--weights=gone.safetensors", "--dataset=x"], "no such file"),
        (["convert"], "SOURCE is needed"),
        (["convert", "WEIGHTS"], "DEST is needed"),
        (["convert", "WEIGHTS", "TMP/run", "stray"], "'stray' is not expected"),
        (["convert", "WEIGHTS", "TMP/run"], "--model is needed"),
        (["convert", "WEIGHTS", "TMP/run", "--model=resnet18"], "do not fit the network: missing: "),
        (["convert", "WEIGHTS", "TMP/run", "--model=test_resnot"], "did you mean 'test_resnet'"),
        (["convert", "WEIGHTS", "TMP/taken", "--model=test_resnet"], "holds something else"),
        (["convert", "resnet50", "TMP/run", "--model=resnet50"], "is no file of weights"),
        (["convert", "TMP/taken", "TMP/w.safetensors"], "no run folder"),
        (["convert", "TMP/taken", "TMP/w.pth"], "to a .safetensors file"),
        (["convert", "WEIGHTS", "TMP/b.safetensors", "--model=test_resnet"], "a run folder to be made"),
        (["convert", "TMP/typo", "TMP/w.safetensors"], "no such file or folder"),
        (["convert", "TMP/typo", "TMP/w"], "no such file or folder"),
        (["evaluate", "--model=test_resnet", "--checkpoint=best", "--dataset=x"], "goes with --workdir"),
    ],
)  # fmt: skip
def test_what_the_commands_refuse(arguments, words, weights, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    filled = [a.replace("WEIGHTS", str(weights)).replace("TMP", str(tmp_path)) for a in arguments]
    assert cli.main(filled) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert {p.name for p in tmp_path.iterdir()} <= {"taken", "digits", "downloads"}


def test_an_existing_file_is_not_written_over(weights, tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "w.safetensors"
    assert cli.main(["convert", str(weights), str(run), "--model", NAME]) == 0
    digest = hashlib.sha256(
        b"".join(sorted(p.read_bytes() for p in run.rglob("*") if p.is_file()))
    ).digest()
    assert cli.main(["convert", str(weights), str(run), "--model", NAME]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (
        hashlib.sha256(
            b"".join(sorted(p.read_bytes() for p in run.rglob("*") if p.is_file()))
        ).digest()
        == digest
    )
    file.write_text("dear")
    assert cli.main(["convert", str(run), str(file)]) == 2
    assert "exists: name another file" in capsys.readouterr().err
    assert file.read_text() == "dear"


def damaged(kind, good, tmp_path):
    """A malformed file of weights."""
    file = tmp_path / f"{kind}.safetensors"
    if kind == "truncated":
        file.write_bytes(good.read_bytes()[:-1000])
    elif kind == "of another kind":
        file.write_bytes(b"PK\x03\x04 no safetensors")
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        tensors = read_tensors(good)
        tensors["layer2.0.conv1.weight"][0, 0, 0, 0] = np.nan
        write_safetensors(file, tensors)
    return file


@pytest.mark.parametrize("kind", ["truncated", "of another kind", "empty", "not finite"])
def test_malformed_weights_are_one_line_and_load_nothing(kind, weights, tmp_path, capsys, tiny):
    file = damaged(kind, weights, tmp_path)
    for arguments in (
        ["convert", str(file), str(tmp_path / "run"), "--model", NAME],
        ["main", *tiny, f"--config.model.pretrained={file}", f"--workdir={tmp_path / 'run'}"],
    ):
        assert cli.main(arguments) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert str(file) in line
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_starts_from_weights(photographs, tmp_path, cache_dir, capsys):
    """The head is fresh, the rest is the file's; a second start needs the file no more."""
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
def test_networks_of_every_kind_train(options, tiny, tmp_path):
    arguments = [*tiny, *(f"--config.model.{option}" for option in options)]
    if "in_channels=1" in options:
        arguments += ["--config.augment.mean=(0.3,)", "--config.augment.std=(0.37,)"]
    run = tmp_path / "run"
    assert main.main([*arguments, "--config.train.epochs=1", f"--workdir={run}"]) == 0
    image = np.zeros((1, 8, 8, 3), np.uint8)
    assert flax_resnet.load(run).predict(image).labels.shape == (1,)
