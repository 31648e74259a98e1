"""Fixtures for every test."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import ssl
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

import process_tuning  # noqa: F401 (before numpy)
from logs import release_logging
from tests.support.server_process import ServerProcesses, server_processes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden event files anew")


# Of the files that belong to no group, those to begin with: one of them left for the end would run alone.
SLOW = ("test_gpu_profile.py", "test_schedules.py", "test_engine_process.py", "test_barge_in_schedules.py")

# The order in which several workers take these groups: the longest first, the many small files fill up.
GROUPS = ("real server", "contract", "browser", "audio corpus", "S3")


def _group(path: Path) -> str | None:
    """Tests that share loaded models, a server or a browser stay together in one worker."""
    if path.parent.name == "contract":
        return "contract"
    if path.name in ("test_conversation.py", "test_clone.py", "test_faults.py"):
        return "real server"
    if path.name == "test_audio_corpus.py":  # one pass over all files
        return "audio corpus"
    if path.name in ("test_model_cache.py", "test_s3_setup.py", "test_serverless_s3.py", "test_voice_library.py"):
        return "S3"
    return "browser" if path.parent.name == "e2e" else None


class _Groups(LoadScopeScheduling):  # type: ignore[misc]
    """One worker takes a group, or a file with its fixtures. xdist 3.8 loses its own groups under pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _group(Path(file)) or file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Groups:
    return _Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a run in one process goes from the small to the large, in order of files
        rank = {group: number for number, group in enumerate(GROUPS)}
        items.sort(key=lambda item: (rank.get(_group(item.path) or "", len(GROUPS)), item.path.name not in SLOW))


def pytest_collection_finish() -> None:
    """What is imported by now stays; looking through it again and again took the garbage collector a fifth of a run."""
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names that all workers agree on: bytes may hold the time they were made, a set has another order in each."""
    if isinstance(val, set | frozenset):
        return repr(sorted(map(str, val)))
    return "bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports travel between workers as UTF-8; what a test printed may hold a lone surrogate on purpose."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def _gradio_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gradio copies files to one folder per machine otherwise, and a test would find what another run left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _authorities_read_once() -> Iterator[None]:
    """httpx reads all certificate authorities for each client: 50 ms, thousands of times, for servers on loopback."""
    real = httpx.create_ssl_context

    @cache
    def usual(trust_env: bool, *_places: str | None) -> ssl.SSLContext:
        return real(trust_env=trust_env)

    def create_ssl_context(
        verify: ssl.SSLContext | str | bool = True, cert: Any = None, trust_env: bool = True
    ) -> ssl.SSLContext:
        if verify is True and cert is None:
            return usual(trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        return real(verify=verify, cert=cert, trust_env=trust_env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", create_ssl_context)
        yield


@pytest.fixture(scope="session", autouse=True)
def _event_loop_that_the_runner_restores() -> Iterator[None]:
    """A loop for pytest-asyncio 1.5 to find and restore; the one it would make is never closed, which fails the run."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(scope="session")
def servers() -> Iterator[ServerProcesses]:
    """Real servers with the real models: one for all tests that leave it alive."""
    with server_processes() as servers:
        yield servers


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    """For tests of what configures logging: other tests look at records too."""
    known = [name for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)]
    names = {"", "voicepod", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "library", *known}
    loggers = [logging.getLogger(name) for name in names]
    kept = [(logger, logger.level, logger.propagate, logger.disabled, list(logger.handlers)) for logger in loggers]
    structlog.contextvars.clear_contextvars()
    yield
    release_logging()
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    for logger, level, propagate, disabled, handlers in kept:
        if logger.level != level:  # each time it is set, all loggers are gone through
            logger.setLevel(level)
        logger.propagate, logger.disabled, logger.handlers[:] = propagate, disabled, handlers
