"""S3 servers that several files use: each is started once a process, and emptied after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fault_proxy import FaultProxy, faulty
from tests.support.s3_servers import S3Server, start_moto, start_nanio


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with start_moto() as server:
        yield server


@pytest.fixture(scope="session")
def nanio() -> Iterator[S3Server]:
    with start_nanio() as server:
        yield server


@pytest.fixture(params=["moto", "nanio"])
def server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    server: S3Server = request.getfixturevalue(request.param)
    yield server
    server.empty()


@pytest.fixture
def proxy(moto: S3Server) -> Iterator[FaultProxy]:
    with faulty(moto.endpoint_url) as proxy:
        yield proxy
    moto.empty()
