"""Ctrl-C in a command. This module imports nothing slow, and so handles Ctrl-C while the others are imported."""

import contextlib
import os
import signal
import sys


def exit_at_interrupt() -> None:
    """Let Ctrl-C end this process at once, with one line and the exit code 130. Call it before slow imports.

    A KeyboardInterrupt would not do. Raised while jaxlib or TensorStore is imported, it crashes the interpreter or
    becomes an ImportError; raised in JAX's callback of the garbage collector, it is printed and ignored. A command
    bears a kill at any moment, and training handles Ctrl-C itself. A process that ignores Ctrl-C goes on to do so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: object) -> None:
    del frame
    with contextlib.suppress(Exception):  # it may have been interrupted itself
        sys.stdout.flush()
    # A terminal shows ^C, and perhaps a progress bar, in this line.
    os.write(2, b"\ninterrupted\n" if os.isatty(2) else b"interrupted\n")
    os._exit(128 + number)
