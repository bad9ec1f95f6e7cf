"""The watch over other processes, with several watches in one process that share a store."""

import io
import random
import threading
import time

import pytest

from flax_resnet.errors import LOST
from flax_resnet.training.processes import watch
from flax_resnet.training.processes.watch import Watch


class Store:
    """The store of JAX's runtime as a dict. Set `silent` to let it answer no more."""

    def __init__(self):
        self.values, self.silent = {}, False

    def key_value_set(self, name, value, allow_overwrite=False):
        assert allow_overwrite
        self.values[name] = value

    def key_value_dir_get(self, place):
        if self.silent:
            raise RuntimeError("UNAVAILABLE")
        return [pair for pair in list(self.values.items()) if pair[0].startswith(place)]


@pytest.fixture
def watches(monkeypatch):
    """Makes watches that share a store; returns the store, the watches, and the exit codes of those that end."""
    monkeypatch.setattr(watch, "PERIOD", 0.01)
    monkeypatch.setattr(watch, "GRACE", 0.05)
    monkeypatch.setattr(watch, "FAREWELL", 0.2)
    made = []

    def make(count, lost_after=60.0):
        store, codes = Store(), {}

        def ender(number):
            def end(code):
                codes[number] = code
                made[number].stop()

            return end

        made.extend(Watch(store, n, count, lost_after, end=ender(n)) for n in range(count))
        for one in made:
            one.start()
        return store, made, codes

    yield make
    for one in made:
        one.stop()
    # On a busy machine `stop` may give up first: a thread must not print into the next test's output.
    for thread in threading.enumerate():
        if thread.name == "watch":
            thread.join(30)
            assert not thread.is_alive()


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_all_stop_at_the_same_boundary(watches):
    """Processes in step, as collectives keep them: none begins a call before all have begun the one before."""
    draw = random.Random(0)
    _, made, _ = watches(4)
    at, ends = [0] * 4, [None] * 4
    delays = [draw.uniform(0, 0.004) for _ in range(4)]

    def run(number):
        while True:
            if made[number].must_stop():
                ends[number] = at[number]
                return
            at[number] += 1  # the call is dispatched, and returns when all have dispatched it
            time.sleep(delays[number])
            while min(at) < at[number]:
                time.sleep(0.0005)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: min(at) > 20)
    made[draw.randrange(4)].request_stop()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(set(ends)) == 1, ends
    assert ends[0] > 20


def test_a_process_that_is_behind_goes_on_to_the_stop(watches):
    store, made, _ = watches(2)
    for _ in range(7):
        assert not made[0].must_stop()
    made[1].request_stop()  # it has passed no boundary yet
    at = [f"{watch.PREFIX}/watch/at/{number}" for number in range(2)]
    wait_until(lambda: set(at) <= store.values.keys())
    assert [store.values[name] for name in at] == ["7", "0"]
    assert [made[1].must_stop() for _ in range(9)] == [False] * 7 + [True] * 2
    assert made[0].must_stop()


def test_a_failure_ends_all_with_its_code(watches, capfd):
    _, made, codes = watches(3)
    made[2].fail(4, "the data are gone")
    wait_until(lambda: codes == {0: 4, 1: 4})
    assert capfd.readouterr().err == "error: process 2: the data are gone\n"
    assert made[0].failure(0)["line"] == "the data are gone"


def test_a_silent_process_is_lost(watches, capfd):
    _, made, codes = watches(3, lost_after=0.5)
    wait_until(lambda: made[0]._beats.get(2, (0, 0))[0] > 3)
    made[2].stop()
    wait_until(lambda: codes == {0: LOST, 1: LOST})
    error = capfd.readouterr().err
    assert error.startswith("error: process 2 ")
    assert error.count("\n") == 1


def test_a_process_that_stands_still_is_lost(watches, monkeypatch):
    """Its threads live, and its main thread hangs, while the others go on."""
    monkeypatch.setattr(watch, "PATIENCE", 1)
    _, made, codes = watches(2, lost_after=0.5)
    for one in made:
        assert not one.must_stop()
    assert not made[0].must_stop()
    wait_until(lambda: set(codes) == {0, 1})
    assert set(codes.values()) == {LOST}


def test_processes_that_all_wait_are_not_lost(watches, monkeypatch):
    """A long compilation, or an evaluation: nobody is ahead."""
    monkeypatch.setattr(watch, "PATIENCE", 1)
    _, made, codes = watches(2, lost_after=0.2)
    for one in made:
        assert not one.must_stop()
    beat = made[0]._beats.get(1, (0, 0))[0]
    wait_until(lambda: made[0]._beats.get(1, (0, 0))[0] > beat + 60)
    assert not codes


def test_process_0_that_does_not_answer_is_lost(watches, capfd):
    store, made, codes = watches(2, lost_after=0.3)
    wait_until(lambda: made[1]._beats)
    store.silent = True
    wait_until(lambda: codes.get(1) == LOST)
    assert "process 0" in capfd.readouterr().err


def test_a_lost_process_ends_although_standard_error_is_closed(watches, monkeypatch):
    store, made, codes = watches(2, lost_after=0.3)
    wait_until(lambda: made[1]._beats)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    store.silent = True
    wait_until(lambda: codes.get(1) == LOST)
