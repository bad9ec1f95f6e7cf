"""A command prints one line for an error; libraries must not print tracebacks beside it."""

import functools
import logging
import sys
from typing import Any


@functools.cache  # once a process
def quiet_libraries() -> None:
    """Hide the tracebacks that Orbax and TensorStore print beside an error that they raise.

    A command owns its process. `flax_resnet.train` and imports leave these hooks alone.
    """
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).addFilter(
            lambda record: "orbax" not in record.pathname + record.getMessage()
        )
    print_unraisable = sys.unraisablehook

    def unless_late(unraisable: Any) -> None:
        # TensorStore came after Orbax had closed the event loop of a failed call.
        if str(unraisable.exc_value) != "Event loop is closed":
            print_unraisable(unraisable)

    sys.unraisablehook = unless_late
