"""Fixtures for every test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden event files anew")


@pytest.fixture(scope="session", autouse=True)
def _event_loop_that_the_runner_restores() -> Iterator[None]:
    """A loop for pytest-asyncio 1.5 to find and restore; the one it would make is never closed, which fails the run."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
