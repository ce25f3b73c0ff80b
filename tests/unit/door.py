"""The test-only extension, or a skip that says how to get it: ``from .door import ct``."""

import pytest

ct = pytest.importorskip(
    "tests._ctest",
    reason="tests/_ctest is not built (USTACK_CTEST=1 python setup.py build_ext --inplace)",
    exc_type=ImportError,
)
