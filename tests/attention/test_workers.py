"""Tasks side by side: errors end the run, and no other thread is left with another number of threads."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from fastdit.attention import workers


def test_an_error_in_one_thread_ends_all():
    def fail(space):
        raise KeyError(space)

    with pytest.raises(KeyError, match="lost"):
        workers.run((fail for _ in iter(int, 1)), lambda: "lost", 3)  # endless, were it not for the error


@pytest.fixture
def four_threads():
    """PyTorch on four threads, here and in every thread that is yet to come."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def in_a_fresh_thread(function):
    """What function() gives in a thread that has not used PyTorch yet."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_that_begin_during_a_run_keep_the_usual_number(four_threads, monkeypatch):
    monkeypatch.setattr(workers, "_POOL", workers._Pool())
    found = []

    def task(space):
        found.append((torch.get_num_threads(), in_a_fresh_thread(torch.get_num_threads)))

    for threads in (2, 3, 2):  # the second run wants more than there are
        workers.run([task] * 6, lambda: None, threads)
    assert found == [(1, 4)] * 18
    assert torch.get_num_threads() == in_a_fresh_thread(torch.get_num_threads) == 4


def test_a_thread_with_a_number_of_its_own_changes_it_for_no_other(four_threads, monkeypatch):
    monkeypatch.setattr(workers, "_POOL", workers._Pool())

    def alone():
        workers.run([lambda space: None] * 3, lambda: None, 2)
        return torch.get_num_threads()

    assert in_a_fresh_thread(alone) == 4 and torch.get_num_threads() == 4


def test_callers_at_the_same_time_share_the_threads():
    done = []
    callers = [
        threading.Thread(target=workers.run, args=([lambda space, i=i: done.append(i)] * 50, int, 2 + i % 2))
        for i in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert sorted(done) == [i for i in range(6) for _ in range(50)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_threads_of_its_own_and_ends():
    script = """
import os, sys, torch
from fastdit.attention import workers
def work():
    done = []
    workers.run([lambda space: done.append(torch.ones(9).sum())] * 9, int, 2)
    return len(done)
assert work() == 9
child = os.fork()
assert work() == 9
sys.exit(0 if not child else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
