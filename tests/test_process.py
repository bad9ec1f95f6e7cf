"""Importing, training, loading and predicting leave the process as they found it."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from conftest import ROOT, saved_run

from flax_resnet.cli import app, commands

# Libraries change the process when they are imported. They are imported first, so that only this package is tested.
RECORD = """
import json, logging, os, resource, signal, sys, threading, warnings
import absl.flags, absl.logging, jax, numpy, optax, PIL.Image, tensorflow, tensorflow_datasets, orbax.checkpoint
import clu.metric_writers, sklearn.datasets, sklearn.linear_model, flax.linen, scipy.ndimage, ml_collections
import array_record.python.array_record_module, tensorflow_datasets.core.dataset_info

def state():
    found = {f"jax {name}": str(value) for name, value in jax.config.values.items()}
    found |= {f"environ {name}": value for name, value in os.environ.items()}
    for name in ("", "absl", "jax", "tensorflow", "asyncio", "flax_resnet"):
        log = logging.getLogger(name)
        found[f"logger {name}"] = str((log.level, log.handlers, log.filters, log.propagate, log.disabled))
    found |= {f"signal {n}": str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    found |= {f"flag {n}": str(absl.flags.FLAGS[n].value) for n in absl.flags.FLAGS}
    found["warnings"] = str(warnings.filters)
    found["hooks"] = str((sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook))
    found["streams"] = str((id(sys.stdout), sys.stdout.errors, id(sys.stderr), sys.stderr.errors))
    found["errors"], found["print"] = str(numpy.geterr()), str(numpy.get_printoptions())
    found["random"] = str(numpy.random.get_state()[1][:4])
    found["pillow"] = str((PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES))
    found["path"], found["folder"], found["recursion"] = str(sys.path), os.getcwd(), sys.getrecursionlimit()
    return found

def changes(before):
    after = state()
    return {k: (before.get(k), after.get(k)) for k in before | after if before.get(k) != after.get(k)}
"""
USE = """
jax.config.update("jax_default_matmul_precision", "bfloat16")
before, found = state(), {}
import flax_resnet
from flax_resnet.config import freeze
flax_resnet.Classifier, flax_resnet.train, flax_resnet.create_model
found["import"] = changes(before)
model = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}
train = {"epochs": 1, "batch_size": 240, "matmul_precision": "float32"}
sections = {"data": {"data_dir": sys.argv[1]}, "model": model, "train": train, "schedule": {"warmup": 0}}
flax_resnet.train(freeze(sections), sys.argv[2])
found["train"] = changes(before)
sections["optimizer"] = {"learning_rate": 1e30}
try:
    flax_resnet.train(freeze(sections), sys.argv[2] + "_diverged")
except flax_resnet.errors.DivergedError:
    found["failed"] = changes(before)
classifier = flax_resnet.load(sys.argv[2])
found["load"] = changes(before)
classifier.predict(numpy.zeros((2, 9, 9, 3), numpy.uint8))
found["predict"] = changes(before)
print(json.dumps(found))
"""


def test_use_from_python_leaves_the_process_as_it_was(data_dir, tmp_path):
    code = RECORD + USE
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code, data_dir, str(tmp_path / "run")],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {key: {} for key in ("import", "train", "failed", "load", "predict")}


SHAPE = {"name": "resnet18", "widths": (4, 8), "depths": (1, 1), "stem": "cifar"}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("float32", "float32"), ("tf32", "tensorfloat32"), ("default", "high")],
)
def test_a_run_is_judged_with_its_matmul_precision(
    photographs, tmp_path, setting, expected, monkeypatch
):
    """With default, the setting of the process stays in force; here it is high."""
    from flax_resnet.data.open import open_source
    from flax_resnet.inference.classifier import load
    from flax_resnet.inference.evaluation import evaluate_run
    from flax_resnet.inference.features import compute_features

    data = {"source": "folder", "path": str(photographs), "eval_fraction": 0.5, "image_size": 8}
    train = {"matmul_precision": setting, "batch_size": 8}
    sections = {"data": data, "model": SHAPE, "train": train}
    run = saved_run(tmp_path / "run", sections, ["china", "flower"], step=3)
    seen = []

    def note(method, args, kwargs, context):
        # Loading initializes the network to learn the shapes of its parameters.
        if context.method_name == "__call__" and not context.module.is_initializing():
            seen.append(jax.config.jax_default_matmul_precision)
        return method(*args, **kwargs)

    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "high")
    try:
        with nn.intercept_methods(note):
            classifier = load(run)
            classifier.predict(np.zeros((2, 9, 9, 3), np.uint8))
            after_predict = len(seen)
            evaluate_run(str(run))
            after_evaluation = len(seen)
            source = open_source(classifier.config.data, train=False)
            compute_features(
                classifier.model, classifier.variables, classifier.config, source, batch_size=8
            )
            assert jax.config.jax_default_matmul_precision == "high"
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert 0 < after_predict < after_evaluation < len(seen)
    assert {*seen} == {expected}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "{home}/.cache/flax_resnet/xla"),
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/flax_resnet/xla"),
        ({"XDG_CACHE_HOME": "relative"}, "{home}/.cache/flax_resnet/xla"),
        ({"XDG_CACHE_HOME": "/caches", "JAX_COMPILATION_CACHE_DIR": "/own"}, "/own"),
        ({"JAX_COMPILATION_CACHE_DIR": ""}, "{home}/.cache/flax_resnet/xla"),
    ],
)
def test_compiled_programs_are_in_the_folder_of_the_user(
    variables, expected, monkeypatch, tmp_path, capsys
):
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    assert commands.main(["env"]) == 0
    assert f" {expected.format(home=tmp_path)}: " in capsys.readouterr().out


def test_off_turns_a_cache_of_the_environment_off(monkeypatch):
    was = {k: jax.config.values[k] for k in ("jax_compilation_cache_dir", COMPILE_TIME)}
    monkeypatch.setenv(COMPILE_TIME.upper(), "7")
    try:
        jax.config.update("jax_compilation_cache_dir", "/somewhere")
        jax.config.update(COMPILE_TIME, 7.0)
        app.set_up_jax("off")
        assert jax.config.jax_compilation_cache_dir is None
        assert jax.config.values[COMPILE_TIME] == 7
    finally:
        for name, value in was.items():
            jax.config.update(name, value)


COMPILE_TIME = "jax_persistent_cache_min_compile_time_secs"
