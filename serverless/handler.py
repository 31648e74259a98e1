"""The worker as RunPod starts it: `python -m serverless.handler`.

`--check` runs the checks of the start, prints a JSON report and gives 0 or 1. RunPod's own options (`--test_input`,
`--rp_serve_api` ...) work as its documentation says. SIGTERM lets running jobs end first.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import structlog

import process_tuning  # noqa: F401 (before numpy)
from logs import configure_logging
from pipeline.errors import ConfigError, VoicepodError
from serverless import checks
from serverless.errors import told
from serverless.parts import build, features
from serverless.sdk import import_runpod
from serverless.settings import WorkerSettings, load
from serverless.worker import Worker
from settings import Settings, SystemSettings

log = structlog.get_logger()

_CONFIG_STATUS: Final = 1
_HANGING_STATUS: Final = 1


def start_logging(settings: WorkerSettings) -> None:
    """JSON lines on stdout, as the app writes them: one line a record, secrets' names redacted."""
    configure_logging(Settings(system=SystemSettings(log_level=settings.log_level)), json=True)


@cache
def the_worker() -> Worker:
    """The worker of this process, from its environment. ConfigError names the variable that is wrong."""
    settings = load(os.environ)
    settings.export(os.environ)  # before torch, huggingface_hub or runpod are imported
    return Worker(settings, lambda: build(settings), tell=_tell)


def _tell(job: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    """Posts progress from a thread of the SDK's own."""
    import_runpod().serverless.progress_update(dict(job), dict(progress))


async def handler(job: Mapping[str, Any]) -> dict[str, Any]:
    """What RunPod's SDK calls for each job."""
    try:
        worker = the_worker()
    except ConfigError as error:
        return told(error).answer()
    return await worker.handle(job)


def register(settings: WorkerSettings, worker: Worker) -> None:
    """Has the SDK run the checks before it takes a job; at one that fails it ends the process and tells RunPod."""
    log.info("start.features", **features(settings))
    for check in checks.start_checks(settings, worker.load):

        def run(check: checks.Check = check) -> None:
            outcome = checks.outcome_of(check)
            log.info("start.check", **outcome.as_dict())
            if not outcome.ok:
                raise RuntimeError(outcome.message)

        run.__name__ = check.name
        import_runpod().serverless.register_fitness_check(run)


def run_checks(settings: WorkerSettings, worker: Worker) -> int:
    """Prints the report of all checks; 0 when all are right."""
    outcomes = [checks.outcome_of(check) for check in checks.start_checks(settings, worker.load)]
    document = checks.report(settings, outcomes)
    print(json.dumps(document, indent=2))
    return 0 if document["ok"] else 1


def main(argv: Sequence[str]) -> int:
    """Serves until told to stop. 1, with one line that names the variable, when the configuration is wrong.

    1 as well when the model hangs at the end: the process is left as it is.
    """
    try:
        settings = load(os.environ)
        settings.export(os.environ)
        only_check = "--check" in argv
        if only_check:
            # Stdout is the report's alone.
            configure_logging(Settings(system=SystemSettings(log_level="ERROR")), json=True)
        else:
            start_logging(settings)
        worker = the_worker()
    except VoicepodError as error:
        print(f"the worker does not start: {error.message}", file=sys.stderr)
        return _CONFIG_STATUS
    if only_check:
        return run_checks(settings, worker)
    register(settings, worker)
    import_runpod().serverless.start({"handler": handler, "concurrency_modifier": lambda current: settings.concurrency})
    worker.close()
    if worker.hangs:  # the interpreter would wait for that thread before it ends
        sys.stdout.flush()
        os._exit(_HANGING_STATUS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
