"""The wall time of a real run that is killed and resumed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.runs.time_account import read_account
from flax_resnet.training.stages import LEDGER_STAGES, LOST, STEPPING

QUICK = """
from flax_resnet.cli.command_start import note_start
note_start()
import sys
from flax_resnet.training.runs import time_account
time_account.PERIOD = 0.2
from flax_resnet.main import main
sys.exit(main())
"""


@pytest.fixture
def launch():
    """A function that starts a real run that writes its account five times a second."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with contextlib.ExitStack() as stack:

        def launched(arguments):
            command = [sys.executable, "-c", QUICK, *arguments]
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield launched


def steps_of(workdir):
    """Return the last step that the account knows, and the last saved one."""
    starts = read_account(RunFolder.at(workdir)).starts
    folder = workdir / "checkpoints"
    numbers = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return (starts[-1].last_step if starts else 0), max(numbers, default=0)


@pytest.mark.slow
def test_a_killed_and_resumed_run_accounts_for_its_wall_time(tiny, tmp_path, launch):
    workdir = tmp_path / "run"
    options = [
        *tiny, "--config.train.batch_size=24", "--config.train.checkpoint_every=5",
        "--config.train.eval_every=5", "--config.train.epochs=20", f"--workdir={workdir}",
    ]  # fmt: skip
    began, process = time.monotonic(), launch(options)
    deadline = began + 300
    while True:  # until steps are done after a checkpoint
        reached, checkpoint = steps_of(workdir)
        if checkpoint and reached > checkpoint + 20:
            break
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = time.monotonic() - began
    before = read_account(RunFolder.at(workdir))
    # The start and the end of the interpreter, and what follows the last line, are outside: long on a busy machine.
    assert 0.6 * first < before.total < first

    began, again = time.monotonic(), launch(options)
    err = again.communicate(timeout=300)[1]
    second = time.monotonic() - began
    assert again.returncode == 0, err
    resumed = int(re.search(r"going on from checkpoint (\d+)", err)[1])
    account = read_account(RunFolder.at(workdir))
    assert account.starts[0] == before.starts[0]
    assert account.starts[1].first_step == resumed < account.starts[0].last_step
    assert account.starts[1].last_step == 20 * (1437 // 24)
    assert 0.6 * (first + second) < account.total < first + second
    assert sum(account.shares.values()) == pytest.approx(1)
    shares = account.shares
    assert all(shares[stage] > 0 for stage in (*LEDGER_STAGES, LOST))
    done_twice = account.starts[0].last_step - resumed
    each = before.seconds[STEPPING] / account.starts[0].last_step
    assert account.seconds[LOST] == pytest.approx(done_twice * each)
    line = next(x for x in (workdir / "summary.txt").read_text().splitlines() if x[:4] == "time")
    assert "in 2 starts" in line
    assert f"{LOST} {shares[LOST]:.1%}" in line
