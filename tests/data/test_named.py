"""Datasets named on the command line: which kind a text is, and errors that name the flag."""

import pytest
from conftest import refused

from flax_resnet.cli import commands
from flax_resnet.data.named import naming_flags, source_of
from flax_resnet.errors import ConfigError, DataError


def test_a_path_that_does_not_exist_is_no_tfds_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert source_of("photos") == ("folder", "photos")
    for name in ("mnist", "cifar10_1/v6", "cifar10:3.0.2", "tfds:photos/gone"):
        assert source_of(name) == ("tfds", name.removeprefix("tfds:"))
    for path in ("./gone", "/gone", "~/gone", "photos/gone", "gone.csv", "a/b/gone", "gone/"):
        with refused("--dataset", path, DataError):
            source_of(path)


@pytest.mark.parametrize(
    ("key", "value", "flags", "named"),
    [
        ("data.eval_split", "nope", {"split": "nope"}, ("--split", "nope")),
        ("split", "nope", {"split": "nope"}, ("--split", "nope")),
        ("data.train_split", "train", {"split": "nope"}, ("data.train_split", "train")),
        ("data.path", "/abs/x", {"dataset": "x"}, ("--dataset", "x")),
        ("data.path", "/abs/x", {"split": "nope"}, ("data.path", "/abs/x")),
        ("data.name", "x", {"dataset": "x"}, ("--dataset", "x")),
        ("data.name", "x", {}, ("data.name", "x")),
    ],
)
def test_an_error_names_the_flag_that_gave_the_value(key, value, flags, named):
    with refused(*named, ConfigError) as caught, naming_flags(**flags):
        raise ConfigError("is wrong", key=key, value=value, allowed="right", cure="mend it")
    assert (caught.value.allowed, caught.value.cure) == ("right", "mend it")


def test_evaluate_needs_a_dataset_for_a_model(capsys):
    assert commands.main(["evaluate", "--model=resnet18"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --dataset: ")


@pytest.mark.parametrize("flag", ["--split=nope", "--dataset=nope", "--dataset=nope/nope"])
def test_evaluate_names_the_wrong_flag_before_it_reads_weights(flag, capsys, monkeypatch):
    from flax_resnet.inference import classifier

    monkeypatch.setattr(classifier, "load_pretrained", lambda *a, **k: pytest.fail("reads weights"))
    arguments = ["--model=resnet18", "--dataset=digits", flag]
    assert commands.main(["evaluate", *arguments]) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {flag}: ")
