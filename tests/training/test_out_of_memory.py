"""A training step or evaluation that does not fit in memory: one line has the needs and the settings to change."""

import os
import re
import resource
import subprocess
import sys

import jax
import pytest
from conftest import ROOT, one_device, refused

from flax_resnet.config import freeze
from flax_resnet.errors import ConfigError, recognized
from flax_resnet.training.out_of_memory import evaluation_memory, smaller_settings, step_memory

MESH = one_device()
FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes.")
LIMIT = 24 * 2**30  # bytes of addresses of the process below; its step needs 62 GiB


class Compiled:
    """A compiled step that needs 11 GiB."""

    argument_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 2**30, 0, 0
    temp_size_in_bytes = 10 * 2**30

    def memory_analysis(self):
        return self


def test_the_error_has_the_needs_and_the_settings():
    config = freeze({"train": {"batch_size": 512}})
    with (
        refused("train.batch_size", 512, ConfigError) as error,
        step_memory(config, MESH, {}, Compiled),
    ):
        raise FULL
    assert {"11.0 GiB", "10.0 GiB", "1.0 GiB"} <= set(re.findall(r"[\d.]+ GiB", str(error.value)))
    for key in ("train.microbatch_size", "model.remat", "train.sharding", "data.image_size"):
        assert key in error.value.cure
    assert "1024 bytes" in error.value.problem


def test_without_an_analysis_the_settings_are_named():
    def fails():
        raise FULL

    with (
        refused("train.batch_size", kind=ConfigError) as error,
        step_memory(freeze({}), MESH, {}, fails),
    ):
        raise FULL
    assert "model.remat" in error.value.cure


def test_settings_that_are_set_already_are_not_advised():
    sections = {
        "model": {"remat": "stage"},
        "train": {"microbatch_size": "auto", "sharding": "optimizer"},
    }
    advised = " ".join(smaller_settings(freeze(sections)))
    assert not re.search("remat|microbatch|sharding", advised)
    assert {"train.batch_size", "data.image_size"} <= set(re.findall(r"\w+\.\w+", advised))


def test_other_errors_pass():
    other = jax.errors.JaxRuntimeError("INTERNAL: a bug")
    for block in (step_memory(freeze({}), MESH, {}, Compiled), evaluation_memory(8)):
        with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"), block:
            raise other
    assert recognized(other) is None


def test_an_evaluation_names_its_own_batch_size():
    with refused("train.eval_batch_size", 360, ConfigError), evaluation_memory(360):
        raise FULL


@pytest.mark.slow
def test_a_run_without_enough_memory_ends_with_one_line(tmp_path, data_dir):
    """XLA cannot allocate the temporaries of the first step, in a process with limited memory."""
    command = [
        sys.executable, "-m", "flax_resnet.main", "--config=configs/resnet18.py", "--noreport",
        "--config.model.name=resnet20", "--config.model.depths=(1,1,1)", "--config.data.image_size=256",
        "--config.train.batch_size=1024", "--config.train.epochs=1", "--config.schedule.warmup=0.0",
        f"--workdir={tmp_path / 'run'}", f"--data_dir={data_dir}", "--compilation_cache=off",
    ]  # fmt: skip
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": os.environ["TEST_COMPILER"]},  # one device
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )
    last = ended.stderr.splitlines()[-1]
    assert (ended.returncode, last.startswith("error: train.batch_size=1024: ")) == (2, True), last
    assert "Traceback" not in ended.stderr
    needs = [float(size) for size in re.findall(r"([\d.]+) GiB", last)]
    assert max(needs) > LIMIT / 2**30
    assert "train.microbatch_size" in last
