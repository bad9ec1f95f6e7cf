"""The flag --device: the kind of device that a command computes on."""

import logging
import os
import sys

from absl import flags

from flax_resnet.errors import ConfigError, one_line

AUTO, GPU, CPU = "auto", "gpu", "cpu"

log = logging.getLogger("flax_resnet")


def define(values: flags.FlagValues) -> None:
    """Define --device."""
    flags.DEFINE_enum(
        "device",
        AUTO,
        [AUTO, GPU, CPU],
        "gpu: refuse to run without a usable GPU; cpu: use the CPU only; auto: use what JAX finds",
        flag_values=values,
    )


class _PluginReports(logging.Filter):
    """Keeps JAX's report of a plugin that does not start, which has a traceback, as one line.

    Attributes:
      device: the value of --device. With "auto", the line is a warning; with "gpu", it is for the error of `check`.
      reason: the line; "" without a report.
    """

    device, reason = AUTO, ""

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info or record.exc_info[1] is None:
            return True
        self.reason = one_line(record.exc_info[1])
        if self.device == AUTO:
            log.warning("%s: %s; JAX computes on what is left", record.getMessage(), self.reason)
        return False


_reports = _PluginReports()


def choose(device: str) -> None:
    """Select the devices before JAX starts. Starts nothing, so that processes can join afterwards."""
    _reports.device = device
    logging.getLogger("jax._src.xla_bridge").addFilter(_reports)  # adds it once
    if device == CPU:
        # For `memory.computes_on_cpu`, and for JAX if it is imported later.
        os.environ["JAX_PLATFORMS"] = "cpu"
        if "jax" in sys.modules:
            import jax

            jax.config.update("jax_platforms", "cpu")


def check(device: str) -> None:
    """Start JAX, and raise ConfigError if `device` is "gpu" and JAX has no usable GPU."""
    if device != GPU:
        return
    import jax

    reason = ""
    try:
        found = jax.default_backend()
    # JAX asserts that a platform is left.
    except (RuntimeError, AssertionError) as error:
        found, reason = "no device", one_line(error) if str(error) else ""
    if found == "gpu":
        return
    platforms = os.environ.get("JAX_PLATFORMS", "")
    excluded = platforms and f"JAX_PLATFORMS={platforms}"
    raise ConfigError(
        f"JAX finds no usable GPU, only {found} ("
        f"{_reports.reason or reason or excluded or 'no plugin for a GPU started, or no GPU is visible'})",
        key="--device",
        value=device,
        cure="install the plugin for your driver with pip install 'flax_resnet[cuda13]' or [cuda12], or leave out "
        "--device",
    )
