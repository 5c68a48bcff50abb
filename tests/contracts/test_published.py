"""The contracts are tests, and need what runs tests; nothing else of the package does."""

from __future__ import annotations

import subprocess
import sys

import pytest


def ran(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True).stdout


def test_the_clock_and_the_cluster_need_no_pytest():
    tools = "[name for name in sys.modules if name.partition('.')[0] in ('pytest', 'hypothesis')]"
    assert ran(f"import sys, evener.testing; print({tools})") == "[]\n"


@pytest.mark.parametrize("lacking", ["pytest", "hypothesis"])
def test_contracts_say_what_they_need(lacking):
    code = f"import sys; sys.modules[{lacking!r}] = None\ntry:\n    import evener.testing.contracts.policies"
    told = ran(f"{code}\nexcept Exception as error:\n    print(type(error).__name__, error)")
    assert told.startswith(f"ConfigError evener.testing.contracts needs {lacking}.")
    assert "pip install pytest hypothesis" in told
