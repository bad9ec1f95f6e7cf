"""The machine on which a folder of records was measured, and the GPUs that a command may use."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

from flax_resnet.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
PLATFORMS = {"gpu": "cuda,cpu", "cpu": "cpu"}
SECONDS = 60.0  # time limit for JAX's answer; the driver may hang
CURES = {
    "gpu": "use a machine with an NVIDIA GPU and its driver, and pip install '.[cuda13]'; "
    "or rehearse on the CPU with --platform=cpu --tiny",
    "cpu": "pip install .",
}
ASKED = """
import json, jax
from benchmarks.record import environment
devices = jax.devices()
found = [devices[0].platform, devices[0].device_kind, len(devices), environment()]
print(json.dumps(found))
"""


class Machine(NamedTuple):
    """The device that everything in a folder was measured on.

    Attributes:
      platform: "gpu" or "cpu".
      device: its name, such as "NVIDIA H100 80GB HBM3".
      devices: number of these devices that JAX sees.
      tiny: whether the sizes are tiny, for a rehearsal.
      environment: processor, versions, commit.
    """

    platform: str
    device: str
    devices: int
    tiny: bool
    environment: dict[str, Any]

    def __str__(self) -> str:
        """Return number and name, such as "1 x NVIDIA H100 80GB HBM3"."""
        return f"{self.devices} x {self.device}"


def find_machine(platform: str, tiny: bool) -> Machine:
    """Ask JAX for its devices, in a separate process, so that this one does not occupy them.

    Raises:
      ConfigError: the platform has no device, or JAX does not answer.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASKED],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "JAX_PLATFORMS": PLATFORMS[platform]},
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"JAX did not answer within {SECONDS:g} s", key="--platform", value=platform
        ) from error
    if not done.returncode:
        found, device, count, known = json.loads(done.stdout.strip().rpartition("\n")[2])
        if found == platform:
            return Machine(
                platform, known["cpu"] if platform == "cpu" else device, count, tiny, known
            )
    said = done.stderr.strip().rpartition("\n")[2]
    raise ConfigError(
        f"JAX sees no {platform.upper()}{f' ({said})' if said else ''}",
        key="--platform",
        value=platform,
        cure=CURES[platform],
    )


def first_gpus(number: int) -> str:
    """Return the first `number` GPUs that this command may use, in the format of CUDA_VISIBLE_DEVICES."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    devices = [name.strip() for name in given if name.strip()] or map(str, range(number))
    return ",".join([*devices][:number])
