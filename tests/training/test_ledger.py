"""The ledger of wall time: its stages add up, and the account of a run knows the steps that were done twice."""

import contextlib
import json
import math
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from flax_resnet.config.train_section import Train
from flax_resnet.training.ledger import Ledger
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.time_account import (
    AccountWriter,
    StartTimes,
    TimeAccount,
    read_account,
)
from flax_resnet.training.stages import (
    CHECKPOINT,
    COMPILING,
    EVALUATING,
    EVALUATION,
    INPUT,
    LEDGER_STAGES,
    LOST,
    OTHER,
    PREPARING,
    RECORDS,
    SAVING,
    STEPPING,
    WAITING,
)
from flax_resnet.training.step_metrics import StepMetrics


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def move(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(clock):
    return Ledger(clock.now - 3, clock)  # the process began three seconds ago


def spent(ledger):
    return {stage: seconds for stage, seconds in ledger.seconds().items() if seconds}


def test_stages_add_up_to_the_wall_time(ledger, clock):
    clock.move(1)
    with ledger.stage(STEPPING):
        clock.move(10)
        with ledger.span(INPUT):
            clock.move(2)
        clock.move(20)
        with ledger.span(EVALUATION):
            clock.move(5)
            with ledger.span(CHECKPOINT):
                clock.move(7)
            clock.move(0.5)
    assert ledger.switch(OTHER) == PREPARING
    clock.move(0.25)
    assert ledger.seconds().keys() == set(LEDGER_STAGES)
    assert spent(ledger) == {
        PREPARING: 4, STEPPING: 30, WAITING: 2, EVALUATING: 5.5, SAVING: 7, OTHER: 0.25,
    }  # fmt: skip
    assert sum(ledger.seconds().values()) == 3 + clock.now - 100
    assert ledger.training_seconds() == 30 + 2 + 0.25


def test_an_error_ends_its_stage(ledger, clock):
    with contextlib.suppress(KeyError), ledger.span(EVALUATION):
        clock.move(2)
        raise KeyError
    clock.move(1)
    assert spent(ledger) == {PREPARING: 4, EVALUATING: 2}


def test_compilation_is_moved_out_of_its_stage_once(ledger, clock):
    ledger.switch(STEPPING)
    clock.move(10)
    ledger.compiled(4)  # inside the next one
    clock.move(1)
    ledger.compiled(6)
    clock.move(2)
    ledger.compiled(1)
    assert spent(ledger) == {PREPARING: 3, STEPPING: 13 - 7, COMPILING: 7}
    clock.move(1)
    ledger.compiled(100)  # a wall clock was set: never more than the stage took
    assert spent(ledger) == {PREPARING: 3, COMPILING: 14}
    ledger.switch(WAITING)
    clock.move(5)
    assert spent(ledger) == {PREPARING: 3, COMPILING: 14, WAITING: 5}
    assert ledger.training_seconds() == 5


def test_jax_compiling_is_counted_in_the_thread_of_the_ledger_only():
    def compile_in(seconds):
        def slow(x):
            time.sleep(seconds)  # while JAX traces
            return jax.jit(lambda y: y + seconds)(x)

        jax.jit(slow)(jnp.ones(3))

    ledger = Ledger()
    with ledger.stage(STEPPING):
        compile_in(0.05)
        assert ledger.seconds()[COMPILING] == 0  # nobody counts yet
        began = time.perf_counter()
        with ledger.counting_compilation():
            compile_in(0.06)
            took, counted = time.perf_counter() - began, ledger.seconds()[COMPILING]
            assert 0.06 < counted < took
            other = threading.Thread(target=compile_in, args=(0.07,))
            other.start()
            other.join()
            assert ledger.seconds()[COMPILING] == counted
        compile_in(0.08)
        assert ledger.seconds()[COMPILING] == counted


def test_the_speed_of_a_record_is_that_of_training(ledger, clock):
    """Evaluations, checkpoints and compilation are left out."""
    ledger.switch(STEPPING)
    metrics, read = StepMetrics(0, Train(batch_size=10), ledger), []
    clock.move(2)
    with ledger.span(INPUT):
        clock.move(1)
    clock.move(40)
    ledger.compiled(40)
    with ledger.span(EVALUATION):
        clock.move(100)
    with ledger.span(CHECKPOINT):
        clock.move(50)
    with ledger.span(RECORDS):
        clock.move(1)
    assert metrics.add(0, {"loss": jnp.ones(2)}) == 2
    metrics.read(read.append, all_calls=True)
    assert read == [1, 2]
    assert metrics.means() == {"loss": 1, "images_per_second": 2 * 10 / 4}


def start(first, last, **seconds):
    return StartTimes("2026-01-01T00:00:00+00:00", first, last, seconds)


STARTS = (
    start(0, 100, stepping=50.0, compiling=10.0, input=5.0),  # killed after checkpoint 80
    start(80, 90, stepping=20.0, preparing=3.0),  # killed; checkpoint 80 was found damaged
    start(60, 200, stepping=70.0, saving=2.0, other=1.0),
)


def test_steps_done_twice_are_lost():
    account = TimeAccount(STARTS)
    # Of the first start steps 60 to 100, 0.5 s each; of the second all.
    expected = {
        STEPPING: 50 + 70 - 20, LOST: 20 + 20, COMPILING: 10, WAITING: 5, PREPARING: 3, SAVING: 2, OTHER: 1,
        EVALUATING: 0,
    }  # fmt: skip
    assert account.seconds == expected
    assert account.total == sum(expected.values())
    assert math.isclose(sum(account.shares.values()), 1)
    assert account.shares[LOST] == 40 / 161


@pytest.mark.parametrize(
    ("starts", "lost"),
    [
        ((start(0, 10, stepping=5.0),), 0),
        ((start(0, 10, stepping=5.0), start(10, 20, stepping=5.0)), 0),  # interrupted, and saved
        ((start(0, 10, stepping=5.0), start(0, 20, stepping=8.0)), 5),  # began anew
        ((start(0, 0, preparing=5.0), start(0, 20, stepping=8.0)), 0),
        # Checkpoint 12 was saved after the first start last wrote its line.
        ((start(0, 10, stepping=5.0), start(12, 20, stepping=8.0)), 0),
    ],
)
def test_what_is_lost_in_short_histories(starts, lost):
    assert TimeAccount(starts).seconds[LOST] == lost
    assert TimeAccount(starts).total == sum(TimeAccount(starts).seconds.values())


def test_no_time_has_no_shares():
    assert TimeAccount().shares == TimeAccount((start(0, 0),)).shares == {}
    assert "0 starts" in str(TimeAccount())


GOOD = json.dumps(start(0, 10, stepping=5.0)._asdict())


@pytest.mark.parametrize(
    "line",
    [
        GOOD[:-5],
        "",
        "[1, 2]",
        "null",
        "[" * 100_000,
        '{"steps": 10, "seconds": {"step": 1.0}}',
        GOOD.replace("stepping", "sleeping"),
        GOOD.replace("5.0", "NaN"),
        GOOD.replace("5.0", "-1"),
        GOOD.replace("5.0", "1e999"),
        GOOD.replace("5.0", '"5"'),
        GOOD.replace("10", "true"),
        GOOD.replace('"first_step": 0', '"first_step": 11'),
        GOOD.replace('{"stepping": 5.0}', "[5.0]"),
        GOOD.replace('"began"', '"begun"'),
        "\udcff",
    ],
)
def test_a_line_that_is_no_start_is_ignored_and_removed(tmp_path, line, ledger):
    file = tmp_path / "times.jsonl"
    file.write_bytes(f"{GOOD}\n{line}".encode(errors="surrogateescape"))
    folder = RunFolder.at(tmp_path)
    assert read_account(folder).starts == (start(0, 10, stepping=5.0),)
    with AccountWriter(folder, ledger, 10):
        pass
    first, second = file.read_text().splitlines()
    assert first == GOOD
    assert json.loads(second)["first_step"] == 10


def test_the_lines_of_a_start_replace_each_other(tmp_path, ledger, clock, monkeypatch):
    folder = RunFolder.at(tmp_path)
    assert read_account(folder) == TimeAccount()
    for first in (0, 20):
        with AccountWriter(folder, ledger, first) as writer:
            assert read_account(folder).starts[-1].last_step == first
            ledger.switch(STEPPING)
            ledger.step = first + 20
            clock.move(6)
            assert writer.account().starts[-1].last_step == first + 20
        assert read_account(folder) == writer.account()
    assert [one[1:3] for one in read_account(folder).starts] == [(0, 20), (20, 40)]
    assert read_account(folder).starts[1].seconds[STEPPING] == 12
    assert {file.name for file in tmp_path.iterdir()} == {"times.jsonl"}


def test_a_line_is_written_again_while_the_training_thread_is_busy(tmp_path, monkeypatch):
    monkeypatch.setattr("flax_resnet.training.runs.time_account.PERIOD", 0.01)
    folder, ledger, threads = RunFolder.at(tmp_path), Ledger(), threading.active_count()
    with AccountWriter(folder, ledger, 0):
        ledger.step = 7
        deadline = time.monotonic() + 20
        while not (last := read_account(folder).starts[-1]).last_step:
            assert time.monotonic() < deadline
        assert last.seconds[PREPARING] > 0
    assert threading.active_count() == threads


def test_a_full_disk_loses_the_account_only(tmp_path, ledger):
    (tmp_path / "times.jsonl").mkdir()
    with AccountWriter(RunFolder.at(tmp_path), ledger, 0) as writer:
        pass
    assert len(writer.account().starts) == 1


def test_only_process_0_writes(tmp_path, ledger, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with AccountWriter(RunFolder.at(tmp_path), ledger, 0) as writer:
        pass
    assert len(writer.account().starts) == 1
    assert not list(tmp_path.iterdir())
