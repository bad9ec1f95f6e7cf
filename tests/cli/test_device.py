"""--device: which devices a command uses, and what it says if they are missing or do not start."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from flax_resnet import main

BROKEN = "def initialize():\n    raise RuntimeError('the driver is\\n too old')\n"
# A command that computes something and prints the platform.
COMMAND = """
import sys
from flax_resnet.cli import app

def body(values):
    app.set_up_jax(app.flag(values, "compilation_cache"), app.flag(values, "device"))
    import jax
    print("computed on", jax.numpy.zeros(1).device.platform)

sys.exit(app.run("try", "", lambda values, argv: app.define_common(values), body, None))
"""


def run(tmp_path, *arguments, plugin=True, **variables):
    """Run the command where JAX finds a plugin that does not start, like that of another driver."""
    if plugin:
        package = tmp_path / "jax_plugins" / "broken"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(BROKEN)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", **variables}
    command = [sys.executable, "-c", COMMAND, "--compilation_cache=off", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_plugin_that_does_not_start_is_a_warning_of_one_line(tmp_path):
    ended = run(tmp_path, JAX_PLATFORMS="")
    assert (ended.returncode, ended.stdout) == (0, "computed on cpu\n")
    (line,) = [line for line in ended.stderr.splitlines() if "warning: " in line]
    assert "the driver is too old" in line
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_the_cpu_that_was_asked_for_needs_no_plugin(tmp_path):
    ended = run(tmp_path, "--device=cpu", JAX_PLATFORMS="")
    assert (ended.returncode, ended.stdout) == (0, "computed on cpu\n")
    assert "too old" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "platforms", "reason"),
    [(True, "", "the driver is too old"), (False, "cuda", ""), (False, "cpu", "JAX_PLATFORMS=cpu")],
)
def test_a_gpu_that_was_asked_for_is_refused_with_the_reason(tmp_path, plugin, platforms, reason):
    ended = run(tmp_path, "--device=gpu", plugin=plugin, JAX_PLATFORMS=platforms)
    assert (ended.returncode, ended.stdout) == (2, "")
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("error: --device=gpu: ")
    assert reason in line
    assert "Traceback" not in ended.stderr


def test_training_refuses_before_it_writes(tiny, tmp_path, capsys):
    assert main.main([*tiny, f"--workdir={tmp_path / 'run'}", "--device=gpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device=gpu: ")
    assert not (tmp_path / "run").exists()
