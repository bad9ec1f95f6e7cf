"""Weights of any repository of the hub: of timm, of transformers, of this package, or of something else."""

import json

import numpy as np
import pytest
from conftest import refused
from hub_config import CONFIG
from stand_in_hub import TOKEN, commit_name, stand_in
from weights_by_name import SMALLEST, tensors_of

from flax_resnet import load_pretrained
from flax_resnet.cli import commands
from flax_resnet.errors import WeightsError
from flax_resnet.weights import read_tensors
from flax_resnet.weights.network_configs import about_of

OURS = {**CONFIG, "architecture": SMALLEST, "num_classes": 2, "label_names": ["no", "yes"]}
TRANSFORMERS = {
    "model_type": "resnet", "architectures": ["ResNetForImageClassification"], "layer_type": "basic",
    "depths": [1, 2], "hidden_sizes": [8, 16], "embedding_size": 8, "hidden_act": "relu",
    "id2label": {"1": "cat", "0": "bird", "2": "dog"},
}  # fmt: skip
PREPROCESSOR = {
    "crop_pct": 0.8, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3,
    "size": {"shortest_edge": 64}, "do_normalize": True,
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in(monkeypatch, tmp_path / "cache") as server:
        yield server


def files_of(weights, config, **other):
    values = {"config.json": config, **other}
    return {
        "model.safetensors": weights.read_bytes(),
        **{name: json.dumps(content).encode() for name, content in values.items()},
    }


def test_a_repository_in_timms_layout_is_loaded(hub, weights, pictures):
    hub.repositories["ann/birds"] = [files_of(weights, OURS)]
    classifier = load_pretrained("ann/birds")
    assert classifier.class_names == ("no", "yes")
    assert classifier.config.model.name == SMALLEST
    assert classifier.config.augment.std == (0.25,) * 3
    expected = load_pretrained(SMALLEST, weights=weights).variables["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(classifier.variables["params"]["fc"]["kernel"], expected)
    assert load_pretrained("ann/birds", num_classes=5).model.num_classes == 5
    files = files_of(weights, OURS)
    hub.repositories["ann/old"] = [{"pytorch_model.bin": files["model.safetensors"],
                                    "config.json": files["config.json"]}]  # fmt: skip
    assert load_pretrained("ann/old").class_names == ("no", "yes")
    hub.repositories["ann/none"] = [{"config.json": files["config.json"]}]
    with refused("name", "ann/none", WeightsError):
        load_pretrained("ann/none")


def test_a_revision_is_loaded_and_main_is_the_newest(hub, weights):
    newer = {**OURS, "label_names": ["nein", "ja"]}
    hub.repositories["ann/birds"] = [files_of(weights, OURS)]
    assert load_pretrained("ann/birds").class_names == ("no", "yes")
    hub.repositories["ann/birds"].append(files_of(weights, newer))
    hub.tags["ann/birds", "v1"] = 0
    assert load_pretrained("ann/birds").class_names == (
        "nein",
        "ja",
    )  # not the older one in the cache
    for revision in ("v1", commit_name("ann/birds", 0)):
        assert load_pretrained(f"ann/birds@{revision}").class_names == ("no", "yes")
    with refused("name", "ann/birds@v2", WeightsError):
        load_pretrained("ann/birds@v2")


def test_without_the_hub_the_cache_serves(hub, weights):
    hub.repositories["ann/birds"] = [files_of(weights, OURS)]
    load_pretrained("ann/birds")
    hub.server_close()  # nobody listens there any more
    assert load_pretrained("ann/birds").class_names == ("no", "yes")
    with refused("name", "ann/fish", WeightsError):
        load_pretrained("ann/fish")


def transformers_weights(folder):
    """The tensors of such a network as transformers names them."""
    import jax
    import jax.numpy as jnp

    from flax_resnet import create_model
    from flax_resnet.weights import to_torch, write_safetensors

    model = create_model("resnet18", depths=(1, 2), widths=(8, 16), num_classes=3)
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    shapes = {name: x.shape for name, x in to_torch(empty, "huggingface").items()}
    file = folder / "w.safetensors"
    write_safetensors(file, tensors_of(shapes))
    return file


def test_a_repository_in_transformers_layout_is_loaded(hub, tmp_path, photographs):
    file = transformers_weights(tmp_path)
    files = files_of(file, TRANSFORMERS, **{"preprocessor_config.json": PREPROCESSOR})
    hub.repositories["ann/pets"] = [files]
    classifier = load_pretrained("ann/pets")
    assert classifier.class_names == ("bird", "cat", "dog")
    assert (classifier.config.model.depths, classifier.config.model.widths) == ((1, 2), (8, 16))
    data, augment = classifier.config.data, classifier.config.augment
    assert (data.image_size, data.eval_crop_fraction, data.interpolation) == (64, 0.8, "bicubic")
    assert (augment.mean, augment.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    np.testing.assert_array_equal(
        classifier.variables["params"]["fc"]["kernel"], read_tensors(file)["classifier.1.weight"].T
    )


@pytest.mark.parametrize(
    ("config", "network"),
    [
        ({}, "resnet50"),  # the defaults of transformers
        ({"depths": [3, 8, 36, 3]}, "resnet152"),
        ({"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}, "resnet18"),
        ({"downsample_in_bottleneck": True}, "resnet50_v1"),
    ],
)  # fmt: skip
def test_transformers_configurations_name_our_networks(config, network):
    about = about_of({"model_type": "resnet", **config})
    assert (about.model, about.options) == (network, ())
    assert (about.image_size, about.crop_fraction, about.interpolation) == (224, 0.875, "bilinear")


@pytest.mark.parametrize(
    ("values", "size", "crop", "mode"),
    [
        ({"size": 224, "crop_pct": 0.875}, 224, 0.875, "center"),
        ({"size": {"shortest_edge": 384}}, 384, 1.0, "squash"),
        ({"size": {"height": 96, "width": 96}}, 96, 1.0, "squash"),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
         224, 0.875, "center"),
    ],
)  # fmt: skip
def test_transformers_preprocessing_is_read(values, size, crop, mode):
    about = about_of({"model_type": "resnet"}, values)
    assert (about.image_size, about.crop_fraction, about.crop_mode) == (size, crop, mode)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model_type": "vit"}, "model_type"),
        ({}, "architecture"),
        ({"model_type": "resnet", "layer_type": "mixed"}, "layer_type"),
        ({"model_type": "resnet", "embedding_size": 7}, "embedding_size"),
        ({"model_type": "resnet", "depths": "many"}, "depths"),
        ({"model_type": "resnet", "downsample_in_first_stage": True}, "downsample_in_first_stage"),
        ({**OURS, "model_args": {"act_layer": "gelu"}}, "model_args"),
        ({**OURS, "pretrained_cfg": {**CONFIG["pretrained_cfg"], "mean": "grey"}}, "mean"),
    ],
)
def test_another_network_is_one_line(config, key):
    with refused(key, kind=WeightsError):
        about_of(config)


def test_timms_arguments_become_options():
    about = about_of(
        {**OURS, "model_args": {"layers": [1, 1], "in_chans": 3, "global_pool": "max"}}
    )
    assert dict(about.options) == {"depths": (1, 1), "global_pool": "max"}


def test_a_folder_like_a_repository_is_loaded(weights, tmp_path):
    folder = tmp_path / "ann" / "birds"
    folder.mkdir(parents=True)
    for name, content in files_of(weights, OURS).items():
        (folder / name).write_bytes(content)
    for classifier in (load_pretrained(str(folder)), load_pretrained(SMALLEST, weights=folder)):
        assert classifier.class_names == ("no", "yes")
    with refused(str(folder), kind=WeightsError):
        load_pretrained("resnet18", weights=folder)


def test_a_run_folder_is_not_looked_for_on_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with refused("name", "runs/a", WeightsError):
        load_pretrained("runs/a")
    assert not hub.seen


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_token_is_not_shown_if_the_hub_refuses(hub, monkeypatch, capsys, status, photographs):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refuse["download"] = status
    arguments = ["predict", "--model", "ann/birds", str(next(photographs.rglob("*.jpg")))]
    assert commands.main(arguments) == 2
    out, err = capsys.readouterr()
    assert TOKEN not in out + err
    assert err.splitlines()[-1].startswith("error: name='ann/birds'")
    assert "Traceback" not in err


def test_a_private_repository_needs_the_token(hub, weights, monkeypatch):
    hub.repositories["ann/birds"] = [files_of(weights, OURS)]
    hub.private.add("ann/birds")
    with refused("name", "ann/birds", WeightsError) as error:
        load_pretrained("ann/birds")
    assert error.value.cure
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load_pretrained("ann/birds").class_names == ("no", "yes")
