"""Join the other processes of a run through JAX's distributed runtime, and leave them."""

import contextlib
import os
import socket
import sys
import threading
import time

import jax

from flax_resnet.errors import LOST, ProcessError, one_line
from flax_resnet.training.processes import exchange, watch
from flax_resnet.training.processes.launcher import Launch

FOREVER = 7 * 24 * 3600  # seconds; JAX's own time limits abort the process with a C++ stack
# JAX's own heartbeat acts after `watch.Watch`, and at the least after this many seconds.
HEARTBEAT = 100


def join(launch: Launch, *, timeout: float, lost_after: float) -> watch.Watch:
    """Join the other processes, before JAX's first computation, and start the watch over them.

    Args:
      launch: the place of this process.
      timeout: seconds to wait for the others. If they do not come, one line is printed, and the process ends with
        the exit code 6: JAX's own call can neither be interrupted nor does it return.
      lost_after: see `watch.Watch`.

    Raises:
      ProcessError: the port of process 0 is in use, or the processes have different numbers of devices.
    """
    began, joined = time.monotonic(), threading.Event()
    if launch.process_id == 0:
        _check_port(launch.coordinator)
    threading.Thread(target=_give_up, args=(launch, timeout, joined), daemon=True).start()
    _wait_for_name(launch, began + timeout)
    # Its handler of SIGTERM would take the place of ours, and of the signal's own effect before ours is set.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        launch.coordinator,
        launch.num_processes,
        launch.process_id,
        launch.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=FOREVER,
        heartbeat_timeout_seconds=max(HEARTBEAT, int(3 * lost_after)),
    )
    joined.set()
    found = watch.Watch(exchange.store(), launch.process_id, launch.num_processes, lost_after)
    watch.set_current(found)
    found.start()
    return found


def check_devices() -> None:
    """Raise ProcessError unless all processes have the same number of devices; a batch is split evenly."""
    exchange.check_same("the number of devices", jax.local_device_count())


def leave(found: watch.Watch) -> None:
    """Leave the other processes at the end of a run, when all have come to it."""
    exchange.gather(None)
    found.stop()
    watch.set_current(None)
    jax.distributed.shutdown()


def _check_port(address: str) -> None:
    """Raise ProcessError if another program listens on the port; JAX would crash."""
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            server.bind(("", port))
        except OSError as error:
            raise ProcessError(
                f"process 0 cannot listen there: {one_line(error)}",
                key="--coordinator",
                value=address,
                cure="choose another port, the same in all processes",
            ) from error


def _wait_for_name(launch: Launch, deadline: float) -> None:
    """Wait until the name of the coordinator is known: that of a pod appears when it has started."""
    host, _, port = launch.coordinator.rpartition(":")
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host.strip("[]"), int(port))
            return
        time.sleep(1)


def _give_up(launch: Launch, timeout: float, joined: threading.Event) -> None:
    """End this process if it has not joined in time."""
    if joined.wait(timeout):
        return
    who = (
        f"not all of the {launch.num_processes} processes came to {launch.coordinator}"
        if launch.process_id == 0
        else f"no process 0 answered at {launch.coordinator}"
    )
    error = ProcessError(
        f"{who} within {timeout:.0f} s ({launch.launcher}, process {launch.process_id})",
        cure="start all processes within that time (--join_timeout), and let them reach this address",
    )
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(LOST)
