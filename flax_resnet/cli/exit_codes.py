"""The exit code of a command, and one line for an error that a user can fix."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from flax_resnet.errors import INTERRUPTED, Interrupted, UserError, one_line, recognized


class Exit:
    """The exit code of a command, which `exit_code` sets."""

    code: int = 0


@contextlib.contextmanager
def exit_code() -> Iterator[Exit]:
    """Catch the exceptions of a command inside this block, print one line for each, and set the exit code.

    The code is one of those in errors.py: that of a `UserError`; 75 if training was interrupted and saved; 128 + n
    for a KeyboardInterrupt by signal n; 141 if the reader of the output has closed the pipe. Other exceptions are
    bugs: they pass through.
    """
    ended = Exit()
    try:
        yield ended
        print(end="", flush=True)  # flush here: at exit, nothing would catch a closed pipe
    except UserError as error:
        ended.code = _print_error(error)
    except Interrupted as error:
        if str(error):  # of several processes, one says it
            print(one_line(error), file=sys.stderr)
        ended.code = INTERRUPTED
    except KeyboardInterrupt as stop:
        print("interrupted", file=sys.stderr)
        ended.code = 128 + (stop.args or (signal.SIGINT,))[0]
    except BrokenPipeError:  # the reader has ended, such as `| head`
        _discard_output()
        ended.code = 128 + signal.SIGPIPE
    except Exception as error:
        if (mistake := recognized(error)) is None:
            raise
        if isinstance(error, OSError):
            _discard_output()
        ended.code = _print_error(mistake)


def _print_error(error: UserError) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code


def _discard_output() -> None:
    """Redirect standard output to the null device, because Python flushes it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
