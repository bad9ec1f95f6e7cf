"""Argument parser and entry point of every benchmark. A user's error becomes one line and an exit code."""

import argparse
import functools
import re
from collections.abc import Callable
from typing import NoReturn, ParamSpec

from flax_resnet.cli.exit_codes import exit_code
from flax_resnet.errors import ConfigError

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
    """Wrap the main function of a benchmark in a function that returns its exit code; see `exit_code`."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        with exit_code() as ended:
            ended.code = main(*args, **kwargs) or 0
        return ended.code

    return run
