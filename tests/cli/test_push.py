"""Runs on the hub: the folder, the model card, the upload, and timm that reads the folder."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, refused, saved_run
from stand_in_hub import TOKEN, commit_name, stand_in

import flax_resnet
from flax_resnet import load_pretrained
from flax_resnet.cli import commands
from flax_resnet.config import flatten, freeze
from flax_resnet.errors import ConfigError
from flax_resnet.inference.hub_folder import write_hub_folder
from flax_resnet.training.runs.load import load_run
from flax_resnet.weights import read_tensors

NAMES = tuple(f"kind {number}" for number in range(10))
DATA = {
    "source": "folder",
    "path": "/home/ann/secret project/birds",
    "image_size": 32,
    "eval_split": "test",
}
SECTIONS = {
    "data": DATA,
    "model": {"name": "test_resnet"},
    "augment": {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
    "train": {"batch_size": 48, "epochs": 3},
}
EVALUATIONS = [
    {"step": 5, "epoch": 1, "split": "test", "count": 200, "loss": 0.5, "top1": 0.8, "top5": 1.0},
    {"step": 7, "epoch": 1, "split": "test", "count": 200, "loss": 0.4, "top1": 0.9, "top5": 1.0},
    {"step": 7, "epoch": 1, "split": "train", "count": 900, "loss": 0.1, "top1": 1.0, "top5": 1.0},
]


def made_run(folder, model, records=EVALUATIONS, **data):
    sections = {**SECTIONS, "model": model, "data": {**DATA, **data}}
    saved_run(folder, sections, NAMES, step=7, num_examples=900)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("push") / "run", {"name": "test_resnet"})


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("push") / "folder"
    made = write_hub_folder(path, run, license="mit", repository="ann/birds", checkpoint="best")
    assert (made.path, made.lacking) == (path, ())
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in(monkeypatch, tmp_path / "cache") as server:
        yield server


def front_matter(text):
    import yaml

    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_says_what_was_trained_on_what_and_how_well(folder, run):
    head, body = front_matter((folder / "README.md").read_text())
    assert (head["license"], head["library_name"]) == ("mit", "timm")
    assert head["pipeline_tag"] == "image-classification"
    metric = head["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["type"], metric["value"]) == ("accuracy", 0.9)
    # Wilson 1927 for 180 of 200, computed by hand: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    z, p, n = 1.959964, 0.9, 200
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    for bound in (middle - half, middle + half):
        assert f"{bound / (1 + z**2 / n):.2%}" in body
    for fact in (
        "90.00%",
        "kind 9",
        "900 images",
        f"jax {load_run(run).metadata.versions['jax']}",
        "chosen by this split",
        "hf_hub:ann/birds",
    ):
        assert fact in body
    assert "secret project" not in head["model-index"][0]["results"][0]["dataset"]["name"] + body


def test_the_recipe_of_the_card_gives_the_configuration(folder, run):
    body = (folder / "README.md").read_text()
    code = re.search(r"```python\n(from flax_resnet\.config.*?)```", body, re.DOTALL)[1]
    names = {}
    exec(code, names)
    found = flatten(freeze(names["get_config"]().to_dict()))
    wanted = flatten(flax_resnet.load(run).config)
    different = {key for key in wanted if found[key] != wanted[key]}
    assert different <= {"data.path"}  # only the name of the folder is told
    assert found["train.batch_size"] == 48


def test_an_evaluation_of_other_weights_is_not_told(tmp_path):
    run = made_run(tmp_path / "run", {"name": "test_resnet"}, EVALUATIONS[:1])
    write_hub_folder(tmp_path / "folder", run, license="mit")
    head, body = front_matter((tmp_path / "folder" / "README.md").read_text())
    assert "model-index" not in head
    assert "80.00%" not in body


def test_what_timm_lacks_is_pushed_and_only_we_load_it(tmp_path):
    import yaml

    run = made_run(
        tmp_path / "run", {"name": "resnet18", "widths": (8, 16), "depths": (1, 1), "act": "silu"}
    )
    made = write_hub_folder(tmp_path / "folder", run, license="other")
    assert set(made.lacking) == {"widths", "act"}
    config = json.loads((made.path / "config.json").read_text())
    assert "architecture" not in config  # timm would take it for its own network
    text = (made.path / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] != "timm"
    assert "timm.create_model" not in text
    expected, found = flax_resnet.load(run), load_pretrained(str(made.path))
    jax.tree.map(np.testing.assert_array_equal, found.variables, jax.device_get(expected.variables))
    assert found.config.model.act == "silu"
    assert found.class_names == NAMES


def test_push_uploads_one_commit_that_loads(run, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    arguments = ["push", str(run), "ann/birds", "--license=apache-2.0", "--private"]
    assert commands.main(arguments) == 0
    out, err = capsys.readouterr()
    assert 'timm.create_model("hf_hub:ann/birds", pretrained=True)' in out
    assert TOKEN not in out + err
    (commit,) = hub.repositories["ann/birds"]
    assert commit.keys() == {"README.md", "config.json", "model.safetensors"}
    assert hub.private == {"ann/birds"}
    expected = flax_resnet.load(run)
    found = load_pretrained("ann/birds")
    jax.tree.map(np.testing.assert_array_equal, found.variables, jax.device_get(expected.variables))
    assert found.class_names == NAMES
    assert found.config.augment.std == (0.4, 0.5, 0.6)
    # Again: the repository exists, and its first commit can still be loaded.
    assert commands.main([*arguments[:3], "--license=mit"]) == 0
    assert len(hub.repositories["ann/birds"]) == 2
    assert b"license: mit" in hub.repositories["ann/birds"][1]["README.md"]
    first = commit_name("ann/birds", 0)
    assert load_pretrained(f"ann/birds@{first}").class_names == NAMES


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_push_never_shows_the_token(run, hub, monkeypatch, capsys, status):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refuse["upload"] = status
    assert commands.main(["push", str(run), "ann/birds", "--license=mit"]) == 2
    out, err = capsys.readouterr()
    assert TOKEN not in out + err
    assert err.splitlines()[-1].startswith("error: REPOSITORY=ann/birds: ")
    assert "Traceback" not in err
    assert hub.repositories == {}
    from flax_resnet.errors import WeightsError
    from flax_resnet.weights.hub_upload import upload

    with pytest.raises(WeightsError) as error:
        upload(run, "ann/birds", private=False, message="")
    assert error.value.__cause__ is None  # a traceback would show what the server answered
    assert error.value.__suppress_context__


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ([], "RUN"),
        (["RUN"], "REPOSITORY"),
        (["RUN", "ann/birds"], "--license"),
        (["RUN", "ann/birds", "--license=apache"], "--license=apache"),
        (["RUN", "birds", "--license=mit"], "REPOSITORY=birds"),
        (["RUN", "ann/birds@main", "--license=mit"], "REPOSITORY=ann/birds@main"),
        (["RUN", "ann/birds", "--license=mit"], "REPOSITORY=ann/birds"),  # no token
        (["RUN", "ann/birds", "--license=mit", "--checkpoint=3"], ""),
        (["/nothing", "ann/birds", "--license=mit"], "/nothing"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_sent(run, hub, capsys, arguments, key):
    given = [str(run) if argument == "RUN" else argument for argument in arguments]
    assert commands.main(["push", *given]) in (2, 5)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {key}")
    assert not hub.seen


def test_a_folder_is_written_and_nothing_is_sent(run, hub, tmp_path, capsys):
    folder = tmp_path / "folder"
    arguments = ["push", str(run), "--license=mit", f"--folder_only={folder}"]
    assert commands.main(arguments) == 0
    assert f'timm.create_model("local-dir:{folder}", pretrained=True)' in capsys.readouterr().out
    assert not hub.seen
    assert read_tensors(folder / "model.safetensors")["fc.weight"].shape[0] == 10
    assert commands.main(arguments) == 5  # never overwritten
    with refused("--license", "mine", ConfigError) as error:
        write_hub_folder(tmp_path / "other", run, license="mine")
    assert "mit" in error.value.allowed


TIMM = """
import sys, json, numpy, timm, torch
model = timm.create_model(sys.argv[1], pretrained=True).eval()
images = torch.from_numpy(numpy.load(sys.argv[2])).permute(0, 3, 1, 2).contiguous()
with torch.no_grad():
    numpy.save(sys.argv[3], model(images).numpy())
data = timm.data.resolve_model_data_config(model)
print(json.dumps([data[key] for key in ("input_size", "mean", "std", "crop_pct", "interpolation", "crop_mode")]))
print(json.dumps(model.pretrained_cfg.get("label_names")))
again = timm.create_model(sys.argv[1], pretrained=True, num_classes=3)  # to fine-tune
assert again.num_classes == 3
"""


def in_timm(name, folder, **environment):
    """Timm's logits for the images in a folder, its preprocessing, and its names of the classes."""
    done = subprocess.run(
        [sys.executable, "-c", TIMM, name, folder / "images.npy", folder / "logits.npy"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "logits.npy"), *map(json.loads, done.stdout.splitlines())


@pytest.mark.parity
def test_timm_loads_from_the_hub_what_push_uploaded(run, hub, tmp_path, monkeypatch):
    for library in ("torch", "timm"):
        pytest.importorskip(library, reason="pip install '.[parity]'")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert commands.main(["push", str(run), "ann/birds", "--license=mit"]) == 0
    ours = load_pretrained("ann/birds")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    expected = np.asarray(jax.jit(ours.model.apply)(ours.variables, images))
    home = str(tmp_path / "home")
    found, _, names = in_timm("hf_hub:ann/birds", tmp_path, HF_ENDPOINT=hub.address, HF_HOME=home)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert names == list(NAMES)


NETWORKS = (
    {"name": "test_resnet"},
    {"name": "resnet18"},
    {"name": "resnet18", "depths": (1, 2, 1, 1), "global_pool": "avgmax", "in_channels": 1},
    {"name": "resnetv2_18", "output_stride": 16},
    {"name": "seresnet18", "norm": "frozen"},
)


@pytest.mark.parity
@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: "-".join(map(str, model.values())))
def test_timm_reads_the_folder_and_gives_the_same_logits(model, tmp_path):
    for library in ("torch", "timm"):
        pytest.importorskip(library, reason="pip install '.[parity]'")
    channels = model.get("in_channels", 3)
    grey = {"augment": {"mean": (0.4,), "std": (0.5,)}} if channels == 1 else {}
    sections = {**SECTIONS, "model": model, **grey}
    saved_run(tmp_path / "run", sections, NAMES, step=7)
    folder = write_hub_folder(tmp_path / "folder", tmp_path / "run", license="mit")
    assert not folder.lacking
    ours = load_pretrained(str(folder.path))
    images = np.random.default_rng(0).normal(size=(2, 64, 64, channels)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    expected = np.asarray(jax.jit(ours.model.apply)(ours.variables, images))
    found, data, names = in_timm(f"local-dir:{folder.path}", tmp_path, HF_HUB_OFFLINE="1")
    assert found.shape == (2, 10)
    assert expected.std() > 1e-2
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    config = ours.config
    assert data == [
        [channels, 32, 32], list(config.augment.mean), list(config.augment.std),
        config.data.eval_crop_fraction or 1.0, config.data.interpolation,
        "squash" if config.data.eval_crop == "resize" else "center",
    ]  # fmt: skip
    assert names == list(NAMES)
