"""The command `evener`, and `python -m evener`: the command line, for `torchrun -m evener` too.

Ctrl-C is remembered before anything else is imported, which takes half a second and loses one now and then.
"""

from __future__ import annotations

from typing import NoReturn

from evener.control.interrupts import remember


def enter() -> NoReturn:
    remember()
    from evener.cli.main import enter

    enter()


if __name__ == "__main__":
    enter()
