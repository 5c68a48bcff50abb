"""`python -m evener` is the command line, for `torchrun -m evener` too."""

from __future__ import annotations

from evener.cli.main import enter

if __name__ == "__main__":
    enter()
