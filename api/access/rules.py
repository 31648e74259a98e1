"""Which rule each door of an application declares: for the API's description, and for the test that none lacks one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fastapi import FastAPI
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import Mount

from api.access.access import AsksItself, Require, open_to_all
from api.access.guard import Guard
from api.access.principal import Reach


@dataclass(frozen=True, slots=True)
class Door:
    """A path with its methods; a socket and a mounted application have none. `rule` None: nobody thought of one."""

    path: str
    methods: frozenset[str]
    rule: Reach | Literal["open"] | None


def doors(app: FastAPI) -> Iterator[Door]:
    """All doors of the application, in the order in which they are tried."""
    for route in iter_route_contexts(app.routes):
        yield Door(route.path or "", frozenset(route.methods or ()), _rule(route))


def _rule(route: RouteContext) -> Reach | Literal["open"] | None:
    original = route.original_route
    if isinstance(original, Mount):
        return original.app.scope if isinstance(original.app, Guard) else None
    found: list[Reach | Literal["open"]] = []
    for dependency in route.dependant.dependencies:
        if isinstance(dependency.call, Require | AsksItself):
            found.append(dependency.call.scope)
        elif dependency.call is open_to_all:
            found.append("open")
    return found[0] if len(set(found)) == 1 else None
