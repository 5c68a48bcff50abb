"""What this machine has."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from evener.devices.machine import _limited, _memory, existing, processor, table
from evener.devices.plan import Device


def test_the_processor_is_one_device_with_its_memory_and_cores():
    cpu = processor()

    assert (cpu.name, cpu.kind) == ("cpu", "cpu")
    assert cpu.description
    assert "model name" not in cpu.description
    assert cpu.cores >= 1
    assert cpu.total > 10**8
    assert 0 < cpu.free <= cpu.total
    assert existing(measured=())[0].total == cpu.total


def test_memory_that_nobody_tells_is_unknown(tmp_path):
    assert _memory(tmp_path / "none")[1] is None
    (tmp_path / "odd").write_text("MemTotal: many kB\n")
    assert _memory(tmp_path / "odd")[1] is None
    (tmp_path / "linux").write_text("MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n")
    assert _memory(tmp_path / "linux") == (2048 * 1024, 1024 * 1024)


def test_a_container_has_no_more_than_it_may_take(tmp_path):
    assert _limited(1000, 500, tmp_path) == (1000, 500)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert _limited(1000, 500, tmp_path) == (1000, 500)
    (tmp_path / "memory.max").write_text("400\n")
    assert _limited(1000, 500, tmp_path) == (400, 300)
    assert _limited(1000, 200, tmp_path) == (400, 200)


def test_free_memory_is_asked_of_the_gpus_that_are_wanted_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(name=f"GPU {i}", total_memory=80)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (asked.append(i), (70 + i, 80))[1])

    assert existing(measured={"cuda:1"})[1:] == [
        Device("cuda:0", "GPU 0", 80), Device("cuda:1", "GPU 1", 80, 71), Device("cuda:2", "GPU 2", 80)
    ]  # fmt: skip
    assert asked == [1]
    assert [device.free for device in existing()[1:]] == [70, 71, 72]


def test_the_table_shows_what_is_known():
    lines = table([Device("cpu", "a chip", 16_000_000_000, None, 8), Device("cuda:0", "a GPU", 80 * 10**9, 10**9)])

    assert lines.splitlines() == [
        "device   memory    free  what",
        "cpu     16.0 GB       ?  a chip, 8 cores",
        "cuda:0  80.0 GB  1.0 GB  a GPU",
    ]
