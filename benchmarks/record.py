"""Write the result of a benchmark as JSON, with the command, the machine and the package versions."""

import json
import os
import pathlib
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from flax_resnet.errors import writing

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-datasets",
    "array_record",
    "pillow",
    "torch",
    "torchvision",
    "timm",
)


def write_record(output: str | None, result: dict) -> None:
    """Write a result with its command and environment; do nothing if `output` is empty.

    Raises:
      OutputError: the file cannot be written. Its previous content is kept.
    """
    if not output:
        return
    record = {"command": sys.argv[1:], "environment": environment(), **result}
    path = pathlib.Path(output)
    text = json.dumps(record, indent=2) + "\n"
    with writing(path):
        if path.exists() and not path.is_file():  # a device, such as /dev/stdout
            path.write_text(text)
            return
        file = path.resolve()
        unfinished = file.with_name(f".{file.name}.part")
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text)
        os.replace(unfinished, file)


def environment() -> dict:
    """Return the processor, the GPUs, the commit of this repository and the package versions."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "gpus": _gpus(),
        "commit": _commit(),
        "versions": {name: _installed(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    model = [line for line in lines if line.startswith("model name")]
    return model[0].split(":")[1].strip() if model else platform.processor()


def _gpus() -> list[str]:
    """Return the names of all NVIDIA GPUs of the machine, used or not."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):  # no driver, or the driver does not answer
        return []
    return [] if done.returncode else done.stdout.splitlines()


def _commit() -> str:
    git = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        return ""


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
