"""Fixtures for every test."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden event files anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers, tests that share loaded models, a server or a browser stay together in one of them."""
    for item in items:
        folder, name = item.path.parent.name, item.path.name
        if folder == "contract":
            item.add_marker(pytest.mark.xdist_group("contract"))
        elif name in ("test_conversation.py", "test_faults.py"):
            item.add_marker(pytest.mark.xdist_group("real server"))
        elif folder == "e2e":
            item.add_marker(pytest.mark.xdist_group("browser"))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are no part of a test's name: an archive holds the time it was made, and all workers must agree."""
    return "bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports travel between workers as UTF-8; what a test printed may hold a lone surrogate on purpose."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def _event_loop_that_the_runner_restores() -> Iterator[None]:
    """A loop for pytest-asyncio 1.5 to find and restore; the one it would make is never closed, which fails the run."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
