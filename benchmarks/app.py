"""Argument parser and entry point of every benchmark. A user's error becomes one line and an exit code."""

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
    """An argparse parser that raises ConfigError for invalid arguments. `command` prints the error."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with the flag and the value from a message of argparse."""
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
    """Wrap the main function of a benchmark in a function that returns an exit code.

    A `UserError` is printed as one line on stderr, and its own exit code is returned. The code is 141 if the reader
    of the output has closed the pipe, and 128 + the signal's number after a signal.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            code = main(*args, **kwargs) or 0
            # Flush inside `try`: nothing would catch a BrokenPipeError at exit.
            print(end="", flush=True)
            return code
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt as stop:
            print("interrupted", file=sys.stderr)
            return 128 + (stop.args or (signal.SIGINT,))[0]
        except BrokenPipeError:  # the reader has ended, such as `| head`
            # Python flushes stdout again at exit. Send that output to /dev/null.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE

    return run
