"""`python -m evener` is the command line, for `torchrun -m evener` too."""

from __future__ import annotations

import sys

from evener.cli import main

if __name__ == "__main__":
    sys.exit(main())
