"""Run a command: parse its flags, print one line for an error, and return the exit code."""

import importlib.util
import io
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

from absl import flags
from tqdm import tqdm

from flax_resnet.cli import device as devices
from flax_resnet.cli.exit_codes import exit_code
from flax_resnet.cli.library_output import quiet_libraries
from flax_resnet.config import settings
from flax_resnet.data.cache_folder import cache_folder
from flax_resnet.errors import ConfigError, UserError, one_line, suggestion
from flax_resnet.settings import in_words
from flax_resnet.training import memory


class _TqdmHandler(logging.Handler):
    """Write lines to stderr without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        tqdm.write(
            text if record.levelno < logging.WARNING else f"warning: {text}", file=sys.stderr
        )


def run(
    name: str,
    doc: str,
    define: Callable[[flags.FlagValues, list[str]], None],
    body: Callable[[flags.FlagValues], int | None],
    argv: Sequence[str] | None,
    *,
    positional: Sequence[str] = (),
    rest: str = "",
) -> int:
    """Run a command and return its exit code.

    Args:
      name: name of the command for --help, such as ``flax-resnet train``.
      doc: text that --help prints above the flags.
      define: a function that adds the command's flags. They get a new FlagValues, so two commands in one process do
        not clash.
      body: a function that does the work; it may return an exit code.
      argv: arguments without the program's name; None for those of the process.
      positional: flags whose values may also be given as positional arguments, in this order.
      rest: a flag with several values that takes the positional arguments after these.

    Returns:
      The exit code; see `exit_code`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    # This handler is removed at the end, so that a program that uses the package keeps its own logging.
    log, handler = logging.getLogger("flax_resnet"), _TqdmHandler()
    level = log.level
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    quiet_libraries()
    _print_any_text()
    try:
        with exit_code() as ended:
            flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
            argv = resolve_config(_with_flag_files(values, argv))
            define(values, argv)
            if {"--help", "-h", "-help"} & set(argv):
                print(f"{doc}\n\nflags of {name}:\n{_help(values)}")
            else:
                _parse(values, argv, positional, rest)
                ended.code = body(values) or 0
        return ended.code
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = True


def _print_any_text() -> None:
    """Let standard output print characters that its encoding lacks, such as those of a class name, as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def flag(values: flags.FlagValues, name: str) -> Any:
    """Return the value of a flag."""
    return values[name].value


def needed(key: str, what: str) -> ConfigError:
    """Return the error for a required flag that is not set; `what` describes the value to set."""
    return ConfigError("is needed", key=key, cure=f"set it to {what}")


def one_of(values: flags.FlagValues, names: Sequence[str], what: str) -> str:
    """Return the name of the only one of these flags that is set.

    Args:
      values: the parsed flags.
      names: the flags, without dashes.
      what: description of the object that the flags select, for the message.

    Raises:
      ConfigError: none of the flags is set, or several are.
    """
    present = [name for name in names if flag(values, name)]
    if not present:
        others = " or ".join(f"--{name}" for name in names[1:])
        raise ConfigError(f"is needed, or {others}", key=f"--{names[0]}", cure=f"name {what}")
    if len(present) > 1:
        first, second = present[:2]
        raise ConfigError(
            f"cannot be combined with --{first}={flag(values, first)}",
            key=f"--{second}",
            value=flag(values, second),
            cure=f"set one only: {what}",
        )
    return present[0]


def _help(values: flags.FlagValues) -> str:
    lines = []
    for name in sorted(values):
        flag = values[name]
        if flag.name == name:
            default = f" (default: {flag.default_as_str})" if flag.default else ""
            lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)


def _with_flag_files(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Replace each --flagfile argument by the lines of its file. Raises ConfigError if a file cannot be read."""
    try:
        return values.read_flags_from_files(argv)
    except (flags.Error, UnicodeDecodeError) as error:
        given = next(text for text in argv if text.lstrip("-").startswith("flagfile"))
        following = argv[argv.index(given) + 1 :]
        _, equals, file = given.partition("=")
        raise ConfigError(
            f"cannot be read: {one_line(error)}",
            key="--flagfile",
            value=file if equals else next(iter(following), ...),
        ) from error


def _parse(values: flags.FlagValues, argv: list[str], positional: Sequence[str], rest: str) -> None:
    """Parse the flags. Convert every exception of absl, ml_collections or a configuration file to a UserError."""
    try:
        others = values([sys.argv[0], *argv])[1:]
    except flags.IllegalFlagValueError as error:
        raise _illegal(values, error) or _readable(error, argv) from error
    except flags.UnrecognizedFlagError as error:
        name, known = f"--{error.flagname}", [f"--{n}" for n in values if len(n) > 1]
        raise ConfigError("unknown flag", key=name, cure=suggestion(name, known)) from error
    except Exception as error:
        # A configuration file is the user's code: it may raise anything.
        raise _readable(error, argv) from error
    for name, value in zip(positional, others, strict=False):
        values[name].value = value
    unexpected = others[len(positional) :]
    if rest:
        values[rest].value = [*flag(values, rest), *unexpected]
    elif unexpected:
        raise ConfigError(
            "unexpected argument", key=unexpected[0], cure="begin the names of flags with --"
        )


def _readable(error: Exception, argv: list[str]) -> UserError:
    """Convert an exception of ml_collections to an error that names the key, its value and the allowed values."""
    # ml_collections wraps an exception of get_config() in another one, whose message holds the traceback.
    cause = error.__context__
    while cause:
        if isinstance(cause, UserError) and "Traceback" not in str(cause):
            return cause
        cause = cause.__context__
    known = settings()
    for position, argument in enumerate(argv):
        if argument.startswith("--config."):
            key, equals, value = argument.removeprefix("--config.").partition("=")
            if not equals:
                value = argv[position + 1] if position + 1 < len(argv) else ""
            if key not in known:
                return ConfigError("unknown setting", key=key, cure=suggestion(key, known))
            if f"config.{key}" in str(error):
                field = known[key]
                words = in_words(cast(type, field.type), field.metadata["rule"])
                return ConfigError(key=key, value=value, allowed=words, cure=field.metadata["help"])
    if isinstance(error, flags.Error):
        return _flag_error(one_line(error))
    return ConfigError(f"{type(error).__name__}: {one_line(error)}", key="--config")


def _illegal(values: flags.FlagValues, error: flags.IllegalFlagValueError) -> ConfigError | None:
    """Return the error for an illegal value of a flag of absl with the allowed values; None for another flag."""
    found = re.match(r"flag --(\w+)=(.*)", str(error), re.DOTALL)
    if not found or found[1] not in values:
        return None
    name, parser = found[1], values[found[1]].parser
    allowed: Any = ""
    if isinstance(parser, flags.BooleanParser):
        allowed = "true or false"
    elif isinstance(parser, flags.EnumParser):
        allowed = tuple(parser.enum_values)
    elif isinstance(parser, flags.IntegerParser | flags.FloatParser):
        allowed = parser.syntactic_help
    if not allowed:
        return None
    value = found[2].removesuffix(f": {error.__context__}")  # the parser's exception
    return ConfigError(key=f"--{name}", value=value, allowed=allowed)


def _flag_error(message: str) -> ConfigError:
    """Convert absl's message ``flag --NAME=VALUE: PROBLEM`` to an error that names flag and value."""
    if found := re.match(r"flag (--\w+)=(.*?): (.*)", message):
        key, value, problem = found.groups()
        return ConfigError(problem, key=key, value=value)
    named = re.search(r"--\w+", message)
    return ConfigError(message, key=named[0] if named else "")


def resolve_config(argv: Sequence[str]) -> list[str]:
    """Replace the name of a packaged configuration in the --config argument by the path of its file.

    Raises:
      ConfigError: there is no such file and no such packaged configuration.
    """
    argv = list(argv)
    for position, argument in enumerate(argv):
        if argument in ("--config", "-config") and position + 1 < len(argv):
            argv[position + 1] = _config_file(argv[position + 1])
        elif argument.startswith(("--config=", "-config=")):
            argv[position] = "--config=" + _config_file(argument.partition("=")[2])
    return argv


def _config_file(text: str) -> str:
    name, colon, argument = text.partition(":")
    if not pathlib.Path(name).is_file():
        packaged = {
            file.stem: file for folder in _config_folders() for file in folder.glob("[!_]*.py")
        }
        wanted = pathlib.Path(name).name.removesuffix(".py")
        if wanted not in packaged or name not in (wanted, f"{wanted}.py", f"configs/{wanted}.py"):
            raise ConfigError(
                "is neither a file nor a packaged configuration",
                key="--config",
                value=name,
                cure=suggestion(wanted, packaged),
            )
        name = str(packaged[wanted])
    return name + colon + argument


def _config_folders() -> list[pathlib.Path]:
    """Return the folder of configurations: inside an installed package, or beside the package in a checkout."""
    package = pathlib.Path(__file__).parents[1]
    return [f for f in (package / "configs", package.parent / "configs") if f.is_dir()][:1]


def picture(path: str | pathlib.Path, flag: str = "--output") -> pathlib.Path:
    """Return the path of a picture to draw. Raises ConfigError for other suffixes, or if matplotlib is missing."""
    path = pathlib.Path(path).expanduser()
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigError(key=flag, value=path, allowed="a file that ends in .png, .pdf or .svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "drawing needs matplotlib",
            key=flag,
            value=path,
            cure="pip install 'flax_resnet[plot]'",
        )
    return path


def set_up_jax(compilation_cache: str, device: str = "auto") -> None:
    """Turn the persistent compilation cache on or off, and choose the device; on CPU, call `memory.prepare_cpu`.

    Args:
      compilation_cache: a folder, or "off".
      device: the value of --device.

    Raises:
      ConfigError: `compilation_cache` is a file, or `device` is "gpu" and there is no usable GPU.
    """
    folder = os.path.expanduser(compilation_cache)
    if os.path.isfile(folder):
        key = "--compilation_cache"
        raise ConfigError("is a file", key=key, value=compilation_cache, allowed="a folder, or off")
    devices.choose(device)
    if memory.computes_on_cpu():
        memory.prepare_cpu()
    import jax

    jax.config.update("jax_compilation_cache_dir", None if compilation_cache == "off" else folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    devices.check(device)


def define_data_dir(values: flags.FlagValues) -> None:
    """Define --data_dir."""
    flags.DEFINE_string(
        "data_dir",
        "",
        "TFDS data folder (default: that of the run or configuration, else that of TFDS)",
        flag_values=values,
    )


def define_common(values: flags.FlagValues) -> None:
    """Define the flags of every command that runs a network."""
    define_data_dir(values)
    define_compilation_cache(values)
    devices.define(values)


def define_compilation_cache(values: flags.FlagValues) -> None:
    """Define --compilation_cache."""
    flags.DEFINE_string(
        "compilation_cache",
        os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_folder("xla")),
        "folder in which JAX keeps compiled programs for later starts, or off; by default "
        "$JAX_COMPILATION_CACHE_DIR, or else flax_resnet/xla in $XDG_CACHE_HOME or ~/.cache",
        flag_values=values,
    )
