"""The frame of every benchmark: its arguments, and one line and an exit code for a mistake."""

import argparse
import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

from flax_resnet.errors import ConfigError, UserError

P = ParamSpec("P")


class Parser(argparse.ArgumentParser):
    """A parser that raises a mistake in the arguments as a ConfigError, which `command` prints."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError for a message of argparse, with the flag and the value that it names."""
        if found := re.fullmatch(r"argument (\S+): (.*): must be (.*)", message, re.DOTALL):
            key, value, allowed = found.groups()
            raise ConfigError(key=key, value=value, allowed=allowed)
        choice = r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)"
        if found := re.fullmatch(choice, message, re.DOTALL):
            raise ConfigError(key=found[1], value=found[2], allowed=f"one of {found[3]}")
        if found := re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL):
            raise ConfigError(found[2], key=found[1])
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            raise ConfigError("is needed", key=found[1], cure="see --help")
        raise ConfigError(message, cure="see --help")


def command(main: Callable[P, int | None]) -> Callable[P, int]:
    """Make the body of a benchmark a function that returns the exit code.

    The codes are those of `flax_resnet.errors`: that of a `UserError`, which is printed as one line on stderr; 141
    if the reader of the output is gone; 128 and its number after a signal.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            code = main(*args, **kwargs) or 0
            print(
                end="", flush=True
            )  # here, and not at exit, where nobody catches that the reader has gone
            return code
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt as stop:
            print("interrupted", file=sys.stderr)
            return 128 + (stop.args or (signal.SIGINT,))[0]
        except BrokenPipeError:  # as of `| head`; Python flushes at its end, to nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE

    return run
