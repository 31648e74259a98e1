"""`python -m serverless.devserver`: a RunPod endpoint on this machine, with workers as the platform starts them.

--demo   also an S3 server in memory and an F5-TTS with tiny random weights: everything runs, the speech is noise.
Without it, the environment is the worker's, as serverless/README.md lists it. DEVSERVER_API_KEY asks callers for a key.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.routing import BaseRoute

from pipeline.errors import VoicepodError
from serverless.devserver.demo import demo_environ, local_storage, s3_in_memory
from serverless.devserver.limits import Limits
from serverless.devserver.server import HANDLER, Plan, serving
from serverless.devserver.worker_routes import worker_urls
from serverless.settings import load

PORT = 8500


def main(argv: Sequence[str]) -> int:
    """0 when it was told to stop; 1 with the reason when it cannot serve."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.command:
        parser.error("--command needs a command")
    try:
        with contextlib.ExitStack() as stack:
            asyncio.run(_serve(_plan(options, stack)))
    except (OSError, VoicepodError) as error:
        print(f"devserver: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    limits = Limits()
    text = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(
        prog="python -m serverless.devserver", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", action="store_true", help="bring the storage and the model as well")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; other than this machine needs a key")
    parser.add_argument("--port", type=_between(1, 65535), default=PORT)
    parser.add_argument("--endpoint", type=_endpoint, default="local", help="id in the URL")
    parser.add_argument(
        "--workers", type=_between(0, 100), default=1, help="0: print what leads a container's worker here"
    )
    longest_s = int(limits.execution_timeout_range_s[1])
    parser.add_argument(
        "--execution-timeout", type=_between(1, longest_s), default=limits.execution_timeout_s, help="seconds"
    )
    parser.add_argument("--command", nargs=argparse.REMAINDER, default=HANDLER, help="another worker than our own")
    return parser


def _between(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return number


def _endpoint(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", text):
        raise argparse.ArgumentTypeError("letters, digits, - and _ only")
    return text


def _plan(options: argparse.Namespace, stack: contextlib.ExitStack) -> Plan:
    api_key = os.environ.get("DEVSERVER_API_KEY") or None
    if options.host not in ("127.0.0.1", "localhost") and api_key is None:
        raise OSError("on another address than 127.0.0.1 callers need a key; set DEVSERVER_API_KEY")
    environ = {name: value for name, value in os.environ.items() if name != "DEVSERVER_API_KEY"}
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="voicepod-devserver-")))
    routes: list[BaseRoute] = []
    if options.demo:
        environ = demo_environ(environ, directory)
        if environ.get("STORAGE") != "local" and not environ.get("S3_BUCKET"):
            environ |= stack.enter_context(s3_in_memory())
    if environ.get("STORAGE") == "local":
        if not options.demo:  # else it goes with this program
            environ["STORAGE_DIR"] = str(load(environ).storage_dir)
        variables, routes = local_storage(environ, f"http://{options.host}:{options.port}", directory)
        environ |= variables
    return Plan(
        command=options.command,
        n_workers=options.workers,
        environ=environ,
        host=options.host,
        port=options.port,
        endpoint=options.endpoint,
        api_key=api_key,
        limits=Limits(execution_timeout_s=options.execution_timeout),
        routes=routes,
    )


async def _serve(plan: Plan) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(plan) as server:
        print(f"endpoint: {server.url}", flush=True)
        if plan.n_workers:
            print(f"try it:   python -m serverless.client demo --url {server.url} --out demo", flush=True)
        else:
            worker = server.workers.admit(f"worker-{secrets.token_hex(4)}", secrets.token_urlsafe(24))
            variables = {**worker_urls(server.url, worker.key), "RUNPOD_POD_ID": worker.id}
            variables |= {"RUNPOD_AI_API_KEY": worker.key, "RUNPOD_ENDPOINT_ID": plan.endpoint}
            print("a worker of yours serves it with these variables:")
            print("".join(f"{name}={value}\n" for name, value in variables.items()), end="", flush=True)
        done = asyncio.create_task(stop.wait())
        await asyncio.wait([done, asyncio.create_task(server.closed.wait())], return_when=asyncio.FIRST_COMPLETED)
        print("stopping: running jobs end first", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
