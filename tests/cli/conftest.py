"""What commands that run in this process leave behind."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Let the log say what it said before: a command turns it down for its own process."""
    logger = logging.getLogger("magnus_cache")
    level = logger.level
    yield
    logger.setLevel(level)
