"""Print the environment for a bug report: flax-resnet env

Shows the versions of flax_resnet and its dependencies, Python, the platform, JAX's devices, free memory, the
compilation cache, and the environment variables that affect a run.
"""

import importlib.metadata
import os
import pathlib
import platform
import sys
from collections.abc import Sequence

from absl import flags

from flax_resnet.cli import app
from flax_resnet.errors import one_line
from flax_resnet.version import __version__

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_collections", "clu", "tensorflow",
    "tensorflow-cpu", "tensorflow-datasets", "array_record", "pillow", "safetensors", "torch", "timm",
)  # fmt: skip
VARIABLES = (
    "JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "FLAX_RESNET_OPS", "HF_HOME", "TFDS_DATA_DIR",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run("flax-resnet env", __doc__, _define, _print, argv)


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    app.define_compilation_cache(values)


def _print(values: flags.FlagValues) -> None:
    print(
        "\n".join(
            f"{name:<20}{text}" for name, text in facts(app.flag(values, "compilation_cache"))
        )
    )


def facts(compilation_cache: str) -> list[tuple[str, str]]:
    """Return (name, value) pairs that describe the environment.

    Args:
      compilation_cache: the folder of JAX's compilation cache, or "off".
    """
    from flax_resnet.training import memory

    rows = [("flax_resnet", f"{__version__} ({pathlib.Path(__file__).parents[1]})")]
    rows += [("python", f"{platform.python_version()} ({sys.executable})")]
    rows += [("platform", f"{platform.platform()}, {os.cpu_count()} cores")]
    rows += [(name, version) for name in PACKAGES if (version := _version(name))]
    rows += [("devices", _devices())]
    if (free := memory.available()) < sys.maxsize:
        rows += [("memory left", f"{free / 2**30:.1f} GiB")]
    rows += [("compiled programs", _folder(compilation_cache))]
    return rows + [(name, os.environ[name]) for name in VARIABLES if name in os.environ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices() -> str:
    import jax

    try:
        kinds = sorted({device.device_kind for device in jax.devices()})
    except RuntimeError as error:
        return f"none: {one_line(error)}"
    return f"{jax.device_count()} x {', '.join(kinds)} ({jax.default_backend()})"


def _folder(compilation_cache: str) -> str:
    if compilation_cache == "off":
        return "off"
    folder = pathlib.Path(compilation_cache).expanduser()
    try:
        files = [file for file in folder.glob("*") if file.is_file()] if folder.is_dir() else []
        size = sum(file.stat().st_size for file in files)
    except OSError as error:
        return f"{folder}: cannot be read: {one_line(error)}"
    return f"{folder}: {len(files)} files, {size / 2**20:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
