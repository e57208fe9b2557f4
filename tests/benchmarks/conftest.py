"""Fixtures of measurements."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session", autouse=True)
def disks() -> Callable[[int], None]:
    """Wait for disks, as users do, unlike other tests."""
    return os.fsync
