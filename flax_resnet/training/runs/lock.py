"""The lock of a run folder: one process trains in it at a time. Readers need no lock.

The file ``.lock`` names the owner. Two mechanisms protect it. On one machine, the kernel's `flock` releases it when
the owner's process ends, however it ends. Other machines may not see each other's `flock` (it depends on the file
system), so the owner also writes a new number to the file every few seconds. A lock whose number does not change
is stale.
"""

import contextlib
import fcntl
import getpass
import json
import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from flax_resnet.errors import WorkdirError, one_line

LOCK = ".lock"
RENEWAL = 5.0  # seconds between two renewals
STALE_AFTER = 30.0  # seconds without a renewal

log = logging.getLogger("flax_resnet")


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Hold the lock of a run folder inside this block.

    It waits up to `STALE_AFTER` seconds if a process on another machine held the lock and did not release it.

    Raises:
      WorkdirError: another process trains in the folder, or the lock cannot be written.
    """
    path = workdir / LOCK
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise WorkdirError(f"cannot be written: {one_line(error)}", key=workdir) from error
    stop = threading.Event()
    try:
        host, since = socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S %z")
        owner = {"user": _user(), "host": host, "pid": os.getpid(), "since": since}
        kernel_decides = _take(workdir, file, host)
        try:
            _write(file, owner)
        except OSError as error:
            raise WorkdirError(f"cannot be written: {one_line(error)}", key=workdir) from error
        if not kernel_decides:
            time.sleep(RENEWAL / 5)  # another process may have found the lock free at the same time
            if not _names(found := _read(path), owner):
                raise _in_use(workdir, found)
        renewal = threading.Thread(target=_renew, args=(path, file, owner, stop), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            stop.set()
            renewal.join()
            if _names(_read(path), owner):
                with contextlib.suppress(OSError):  # the lock becomes stale by itself
                    os.ftruncate(file, 0)
    finally:
        os.close(file)


def owner_of(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the owner that the lock of a run folder names, or {} without one."""
    found = _read(workdir / LOCK)
    return {key: value for key, value in found.items() if key != "renewal"}


def sees_owner(workdir: pathlib.Path, owner: dict[str, Any], seconds: float) -> bool:
    """Return whether this machine sees the lock of `owner`, after some seconds at most, as network folders need."""
    deadline = time.monotonic() + seconds
    while not (seen := _names(_read(workdir / LOCK), owner)) and time.monotonic() < deadline:
        time.sleep(RENEWAL / 10)
    return seen


def _take(workdir: pathlib.Path, file: int, host: str) -> bool:
    """Return when the lock is free or stale. Raise WorkdirError if another process holds it.

    Returns:
      Whether the file system has `flock`.
    """
    kernel_decides, path = True, workdir / LOCK
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(workdir, _read(path)) from None
    except OSError:  # a file system without flock
        kernel_decides = False
    owner = _read(path)
    if not owner or (kernel_decides and owner.get("host") == host):
        return kernel_decides  # free, or its owner on this machine has ended
    log.info(
        "%s was left locked by process %s of %s on %s: waiting up to %.0f s to see whether that process still runs",
        workdir,
        *(owner.get(key) for key in ("pid", "user", "host")),
        STALE_AFTER,
    )
    deadline = time.monotonic() + STALE_AFTER
    while time.monotonic() < deadline:
        time.sleep(RENEWAL / 5)
        if not (now := _read(path)):
            break
        if now != owner:
            raise _in_use(workdir, now)
    return kernel_decides


def _in_use(workdir: pathlib.Path, owner: dict[str, Any]) -> WorkdirError:
    who = "another process"
    if owner:
        who = "process {pid} of {user} on {host} since {since}".format(
            **{key: owner.get(key, "?") for key in ("pid", "user", "host", "since")}
        )
    return WorkdirError(
        f"is in use: {who} trains in it",
        key=workdir,
        cure="wait for that process, stop it, or name another workdir",
    )


def _renew(path: pathlib.Path, file: int, owner: dict[str, Any], stop: threading.Event) -> None:
    number = 0
    while not stop.wait(RENEWAL):
        number += 1
        found = _read(path)  # {} if it cannot be read now
        if found and not _names(found, owner):
            log.error("%s: another process has taken the lock of this one", path.parent)
            return
        with contextlib.suppress(OSError):
            _write(file, {**owner, "renewal": number})


def _names(found: dict[str, Any], owner: dict[str, Any]) -> bool:
    return {key: found.get(key) for key in owner} == owner


def _write(file: int, owner: dict[str, Any]) -> None:
    """Replace the file's content; a reader sees the old or the new one, because the length stays the same."""
    os.pwrite(file, json.dumps(owner).ljust(512).encode()[:512], 0)
    os.fsync(file)  # a network file system shows it to other machines


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Return the owner that the file names, or {} if it names none."""
    try:
        found = json.loads(path.read_bytes())  # opened anew, for network file systems
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return f"user {os.getuid()}"
