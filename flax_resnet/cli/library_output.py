"""What libraries print during a command: no tracebacks, because a command prints one line for an error."""

import functools
import logging
import sys
from typing import Any


@functools.cache  # once per process
def hide_tracebacks() -> None:
    """Hide the tracebacks that Orbax and TensorStore print beside an error that they raise.

    Only commands call this, because it changes hooks of the whole process. `flax_resnet.train` and imports do not.
    """
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).addFilter(
            lambda record: "orbax" not in record.pathname + record.getMessage()
        )
    print_unraisable = sys.unraisablehook

    def unless_late(unraisable: Any) -> None:
        # TensorStore reports to the event loop of a failed call, which Orbax has already closed.
        if str(unraisable.exc_value) != "Event loop is closed":
            print_unraisable(unraisable)

    sys.unraisablehook = unless_late
