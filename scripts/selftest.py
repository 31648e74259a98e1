"""`python -m scripts.selftest`: talks to a server as a person would, and says how fast and how steady it is.

    --url URL          a running server; $VOICEPOD_KEY opens it. Without it a server of the settings runs for the test
    --turns N          questions in the one talk (8)
    --talks N          talks at once that are tried at most (8)
    --force            also while people talk
    --json FILE        the report as JSON

All other options are those of `app.py` (`--profile cpu|gpu`, `--config FILE`, `--set section.key=value`), for the
server of the test. Exit status: 0 all targets are met, 1 they are not, 2 the test could not be run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import uvicorn

import process_tuning  # noqa: F401 (before numpy)
from api.application import Server
from api.selftest.measure import Plan, load_clips, run
from api.selftest.remote import RemoteServer
from api.selftest.report import Report, in_words
from logs import configure_logging, release_logging
from pipeline.engines.tiny_models import write_tiny_models
from pipeline.errors import ConfigError, VoicepodError
from pipeline.model_needs import require_models
from pipeline.warm_up import warm_turn
from settings import Settings
from settings_sources import load_settings

LOOK_S: Final = 0.05


def main(argv: Sequence[str]) -> int:
    """Run the test; gives the exit status."""
    options, rest = _parser().parse_known_args(argv)
    plan = Plan(options.turns, options.talks, options.force)
    try:
        if options.url:
            if rest:
                raise ConfigError(f"{rest[0]} is an option of a server that is started here, not of --url")
            report = asyncio.run(measured(RemoteServer(options.url, os.environ.get("VOICEPOD_KEY")), plan))
        else:
            loaded = load_settings(rest, os.environ)
            settings = private(loaded.settings)
            configure_logging(settings, json=False)
            require_models(settings)
            if loaded.random_tiny is not None:
                write_tiny_models(loaded.random_tiny)
            report = asyncio.run(of_own_server(settings, plan))
    except VoicepodError as error:
        print(f"selftest: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 2
    finally:
        release_logging()
    print(in_words(report))
    if options.json:
        try:
            options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
        except OSError as error:
            print(f"selftest: the report cannot be written: {error.strerror}", file=sys.stderr)
            return 2
    return 0 if report.is_fine else 1


async def measured(server: RemoteServer, plan: Plan) -> Report:
    """The report; how far it is goes to the terminal's error output. Raises `VoicepodError`."""
    report: Report | None = None
    async with aclosing(run(server.connect, server, plan, load_clips())) as steps:
        async for step in steps:
            if isinstance(step, Report):
                report = step
            elif sys.stderr.isatty():
                print(f"\r{step:4.0%}", end="", file=sys.stderr, flush=True)
    assert report is not None  # the last step is one
    return report


async def of_own_server(settings: Settings, plan: Plan) -> Report:
    """The report on a server of these settings that runs for the test only."""
    async with own_server(settings) as url:
        return await measured(RemoteServer(url, None), plan)


@asynccontextmanager
async def own_server(settings: Settings) -> AsyncIterator[str]:
    """A server on a free port of this machine, whose records go when it goes; its URL. `ConfigError`."""
    with tempfile.TemporaryDirectory(prefix="voicepod-selftest-") as folder:
        fatal: list[BaseException] = []
        storage = settings.storage.model_copy(update={"dir": Path(folder)})
        server = Server(settings.model_copy(update={"storage": storage}), on_fatal=fatal.append, warm_up=warm_turn)
        http = uvicorn.Server(
            uvicorn.Config(
                server.app, host="127.0.0.1", port=0, log_config=None, ws_per_message_deflate=False, proxy_headers=False
            )
        )
        serving = asyncio.create_task(http.serve(), name="server")
        try:
            while not (http.started and server.readiness.is_ready):
                if fatal:
                    raise fatal[0] if isinstance(fatal[0], VoicepodError) else ConfigError("an engine cannot be loaded")
                if serving.done():
                    raise ConfigError("the server did not start")
                await asyncio.sleep(LOOK_S)
            yield f"http://127.0.0.1:{http.servers[0].sockets[0].getsockname()[1]}"
        finally:
            http.should_exit = True
            await serving


def private(settings: Settings) -> Settings:
    """The same engines behind a door of this machine; only faults are logged, beside the report."""
    network = {"host": "127.0.0.1", "port": 0, "tls_cert": None, "tls_key": None, "websocket_enabled": True}
    return settings.model_copy(
        update={
            "network": settings.network.model_copy(update=network),
            "access": settings.access.model_copy(update={"mode": "open"}),
            "security": settings.security.model_copy(update={"rate_limiting": False}),
            "system": settings.system.model_copy(update={"enable_monitoring": True, "log_level": "ERROR"}),
            "logging": None,
            "performance": settings.performance.model_copy(update={"preload_models": True}),
        }
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.selftest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--url", help="a running server")
    parser.add_argument("--turns", type=_count, default=8, metavar="N", help="questions in the one talk")
    parser.add_argument("--talks", type=_count, default=8, metavar="N", help="talks at once that are tried at most")
    parser.add_argument("--force", action="store_true", help="also while people talk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the report as JSON")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError("from 1 to 100")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
