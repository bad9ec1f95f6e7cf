"""The preparation of a TFDS dataset by two processes at once."""

import threading

import pytest

from flax_resnet.data.preparation import prepare


class Builder:
    """A builder whose preparation waits for `may_end`."""

    def __init__(self, folder, may_end):
        self.data_path, self.calls = folder, 0
        self.began, self._may_end = threading.Event(), may_end

    def download_and_prepare(self):
        self.calls += 1
        self.began.set()
        assert self._may_end.wait(30)
        self.data_path.mkdir()


@pytest.fixture
def builders(tmp_path):
    may_end = threading.Event()
    return [Builder(tmp_path / "set" / "1.0.0", may_end) for _ in range(2)], may_end


def test_the_second_one_waits_for_the_first(builders):
    (first, second), may_end = builders
    threads = [threading.Thread(target=prepare, args=(b,), daemon=True) for b in (first, second)]
    threads[0].start()
    assert first.began.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    may_end.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert (first.calls, second.calls) == (1, 0)


def test_what_a_killed_preparation_left_is_removed(builders, tmp_path):
    (builder, _), may_end = builders
    left = tmp_path / "set" / "incomplete.AB12CD_1.0.0"
    (left / "shard").mkdir(parents=True)
    may_end.set()
    prepare(builder)
    assert not left.exists()
    assert builder.data_path.is_dir()
