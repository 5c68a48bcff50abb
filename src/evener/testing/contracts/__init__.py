"""What every transport, policy, exchange and starter promises: each promise a test, each contract a class to inherit.

    from evener.testing.contracts.transports import TransportContract

    class TestPigeons(TransportContract):
        @pytest.fixture
        def ends(self): ...  # what the contract asks for: its docstring says it

They are modules of pytest and hypothesis, which who trains does not need. In `conftest.py`,
`pytest.register_assert_rewrite("evener.testing")` lets failures tell as much as those of your own tests.
"""

from __future__ import annotations

from evener.errors import ConfigError

try:
    import hypothesis as _  # noqa: F401
    import pytest as _pytest  # noqa: F401
except ImportError as error:
    raise ConfigError(
        f"evener.testing.contracts needs {error.name}.",
        why="what it has are tests; evener itself does not depend on what runs them.",
        fix="pip install pytest hypothesis.",
    ) from None
