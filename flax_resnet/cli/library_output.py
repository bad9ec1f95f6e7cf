"""What libraries print during a command: no tracebacks and no banners, because a command prints its own lines."""

import functools
import logging
import os
import sys
from typing import Any


@functools.cache  # once per process
def quiet_libraries() -> None:
    """Hide the tracebacks that Orbax and TensorStore print beside an error that they raise, logs and banners.

    Only commands call this, because it changes the whole process. `flax_resnet.train` and imports do not.
    """
    # TensorFlow prints a banner for oneDNN, which decoding and resizing do not use.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # Its warnings say with several lines that an image cannot be decoded; a command names the image. JAX sets 1.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs several lines per save
    logging.getLogger("urllib3").setLevel(
        logging.ERROR
    )  # a line for each try to reach MLflow's server
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
