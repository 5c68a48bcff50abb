"""What a process may use of its machine."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evener.devices import prepare_process
from evener.devices.process import give_back, limit_memory


class Libc:
    def __init__(self):
        self.set, self.environment = {}, []

    def setenv(self, *variable):
        self.environment.append(variable)

    def mallopt(self, option, value):
        self.set[option] = value


def test_a_task_uses_the_threads_it_is_given_and_keeps_its_pages(monkeypatch):
    threads, libc = [], Libc()
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    monkeypatch.setattr("sys.platform", "linux")
    prepare_process(3)

    assert threads == [3]
    assert 1 << 24 <= libc.set[-3] <= 1 << 25  # blocks of usual layers come from the heap, larger ones are given back
    assert libc.set[-1] >= 1 << 27  # as the heap is not
    assert libc.set[-2] >= 1 << 20  # and grows in large pieces
    assert libc.environment == [(b"THP_MEM_ALLOC_ENABLE", b"1", 0)]  # 0: what the user has said stays


ASK = """
from evener.devices import prepare_process
from evener.state.tensors import LARGE, zeros
prepare_process(1)
import torch
{made}
with open("/proc/self/smaps_rollup") as file:
    print(next(line.split()[1] for line in file if line.startswith("AnonHugePages")))
"""
MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not MODES.exists() or "[never]" in MODES.read_text(), reason="this kernel gives no transparent huge pages"
)
@pytest.mark.parametrize(
    ("made", "environment", "huge"),
    [
        ("kept = torch.ones(64 << 20, dtype=torch.uint8)", {}, True),
        ("kept = zeros(2 * LARGE).fill_(1)", {}, True),
        ("kept = torch.ones(64 << 20, dtype=torch.uint8)", {"THP_MEM_ALLOC_ENABLE": "0"}, False),
    ],
)
def test_large_blocks_are_of_huge_pages_unless_the_user_says_otherwise(made, environment, huge):
    told = subprocess.run(
        [sys.executable, "-c", ASK.format(made=made)], env=os.environ | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    if huge or "[always]" not in MODES.read_text():
        assert (int(told.stdout) > 32 << 10) is huge  # kB


def test_what_is_free_in_the_heap_is_given_back_where_that_is_possible(monkeypatch):
    asked = []
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=asked.append))
    give_back()
    assert asked == [0]

    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    give_back()


def test_a_share_of_memory_is_of_the_gpu_that_is_used(monkeypatch):
    asked, gpu = [], torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: asked.append(given))
    limit_memory(0.25, gpu)
    limit_memory(None, gpu)
    limit_memory(0.25, torch.device("cpu"))

    assert asked == [(0.25, gpu)]


def test_elsewhere_and_with_another_libc_nothing_breaks(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    prepare_process(1)
    monkeypatch.setattr("sys.platform", "darwin")
    prepare_process(1)
