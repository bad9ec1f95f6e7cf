"""Suppressing messages that libraries print in addition to the error of a command."""

import logging
import sys
import types

from flax_resnet.cli.library_output import quiet_libraries


def test_orbax_does_not_also_print_the_errors_that_it_raises(monkeypatch):
    printed = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    quiet_libraries.__wrapped__()
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    orbax = logging.makeLogRecord({"pathname": "/lib/orbax/checkpoint/future.py", "msg": "raised"})
    ours = logging.makeLogRecord({"pathname": "/lib/flax_resnet/train.py", "msg": "raised"})
    assert not any(logger.filter(orbax) for logger in loggers)
    assert all(logger.filter(ours) for logger in loggers)
    late, other = (
        types.SimpleNamespace(exc_value=RuntimeError(text))
        for text in ("Event loop is closed", "else")
    )
    sys.unraisablehook(late)
    assert printed == []
    sys.unraisablehook(other)
    assert printed == [other]
