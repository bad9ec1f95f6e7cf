"""Signals in a command that the same command resumes, such as `train`: it ends with exit code 75.

While training has something to save, `stop_requested` handles the first signal: it saves, and then ends. At any
other time nothing would be lost, so the process ends at once. A second signal of the same kind always does.

Python runs signal handlers only between two instructions of the main thread, and compiling a step is a single one
that may take minutes. So a thread receives the signals, through `signal.set_wakeup_fd`.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flax_resnet.errors import INTERRUPTED
from flax_resnet.training.interrupt import NAMES
from flax_resnet.training.observer import Observer
from flax_resnet.training.processes import watch

LINE = "interrupted: nothing was lost; run the same command again"


class SignalObserver(Observer):
    """Ends the process at signals, as the module says; see `resumable`."""

    def __init__(self) -> None:
        self._has_news, self._received = False, set[int]()

    def on_first_update(self) -> None:
        """Note that from now on there is something to save."""
        self._has_news = True

    def ignore(self, number: int, frame: object) -> None:
        """Handle a signal in the main thread: do nothing, because `listen` ends the process."""

    def listen(self, pipe: int) -> None:
        """End the process when the pipe delivers a signal that nothing else handles. Return when it is closed.

        Args:
          pipe: the end to read from; each byte is the number of a signal.
        """
        while byte := os.read(pipe, 1):
            number = byte[0]
            handler = signal.getsignal(number)
            if number in self._received:
                _end("interrupted", 128 + number)
            if handler == self.ignore or (not self._has_news and _names(number)):
                _end(LINE, INTERRUPTED)
            self._received.add(number)


@contextmanager
def resumable() -> Iterator[SignalObserver]:
    """Let SIGINT, SIGTERM and SIGUSR1 end this process inside this block as the module says.

    Outside the main thread, nothing changes. A signal that the process ignores stays ignored.

    Yields:
      An observer for `train`, so that a signal is left to training once there is something to save.
    """
    observer = SignalObserver()
    if threading.current_thread() is not threading.main_thread():
        yield observer
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=observer.listen, args=(reader,), name="signals", daemon=True)
    thread.start()
    other = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, observer.ignore)
    try:
        yield observer
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(other)
        os.close(writer)
        thread.join()
        os.close(reader)


def _names(number: int) -> bool:
    return any(number == getattr(signal, name, None) for name in NAMES)


def _end(line: str, code: int) -> None:
    # A terminal shows ^C, and perhaps a progress bar, in this line.
    os.write(2, f"{os.linesep * os.isatty(2)}{line}\n".encode())
    if others := watch.current():
        others.fail(code, line)
        others.leave()
    os._exit(code)
