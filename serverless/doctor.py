"""`python -m serverless.doctor [--google] [--json]`: looks at each point of the troubleshooting list and says the fix.

Nothing is downloaded. `--google` also asks Google once, with one second of silence, which is paid for. Gives 0 when no
point is wrong, else 1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pipeline.errors import VoicepodError
from serverless import doctor_points as points
from serverless.doctor_points import Ground, Skipped, Wrong, google_answers

State = Literal["ok", "wrong", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One point of the list: `fix` is what to do when it is wrong."""

    problem: str
    point: str
    state: State
    found: str
    fix: str


@dataclass(frozen=True, slots=True)
class Point:
    """A line of the list."""

    problem: str
    point: str
    look: Callable[[Ground], str]
    fix: str


_S3, _MODEL, _TIMES = "S3 connection failed", "Model loading failed", "Word timings failed (WhisperX in the old list)"
_GOOGLE, _SLOW = "Google Cloud Speech API failed", "Performance issues"
POINTS: Final = (
    Point(
        _S3, "variables", points.variables_are_set, "set S3_BUCKET and, without a role, both AWS keys on the endpoint"
    ),
    Point(
        _S3, "permissions", points.bucket_is_allowed, "attach the policy of python -m scripts.s3_setup --print-policy"
    ),
    Point(_S3, "region", points.region_is_right, "set AWS_REGION to the bucket's region"),
    Point(_MODEL, "card", points.card_is_there, "choose a GPU for the endpoint, or set ALLOW_CPU=true"),
    Point(
        _MODEL, "cache directory", points.caches_are_writable, "let CACHE_DIR and HF_HOME point to a place of this user"
    ),
    Point(_MODEL, "memory", points.memory_is_enough, "choose a worker with 8 GB of main memory or more"),
    Point(_TIMES, "CUDA", points.cuda_fits, "take the image of this release: its torch and its CUDA belong together"),
    Point(_TIMES, "disk", points.disk_has_room, "give the container a larger disk, or attach a volume"),
    Point(
        _TIMES,
        "installation",
        points.methods_are_installed,
        "take the image of this release; nothing is installed at start",
    ),
    Point(
        _TIMES,
        "models",
        points.ctc_model_is_there,
        "put the model there, or leave CTC_MODEL_DIR out; no connection is needed",
    ),
    Point(_TIMES, "card memory", points.card_has_memory, "choose a card with 4 GB or more"),
    Point(_GOOGLE, "credentials", points.account_is_whole, "paste the service account's JSON whole, or name its file"),
    Point(
        _GOOGLE,
        "API enabled",
        lambda ground: google_answers(ground, "FAILED_PRECONDITION"),
        "enable the Speech-to-Text API in the project",
    ),
    Point(
        _GOOGLE,
        "IAM permissions",
        lambda ground: google_answers(ground, "PERMISSION_DENIED", "UNAUTHENTICATED"),
        "give the account the role roles/speech.client, and see that the API is enabled",
    ),
    Point(
        _GOOGLE, "billing", google_answers, "link the project to a billing account, and see that Google is reachable"
    ),
    Point(
        _GOOGLE,
        "quotas",
        lambda ground: google_answers(ground, "RESOURCE_EXHAUSTED"),
        "raise the quota of the Speech-to-Text API, or use another timing_method",
    ),
    Point(_SLOW, "allocator", points.allocator_is_set, "set PYTORCH_ALLOC_CONF=expandable_segments:True"),
    Point(_SLOW, "S3 speed", points.storage_is_fast, "put bucket and endpoint into one region"),
    Point(_SLOW, "scaling", points.scaling_is_set, "raise the endpoint's workers; WORKER_CONCURRENCY only overlaps S3"),
    Point(_SLOW, "Google latency", points.google_is_fast, "use another timing_method: all others run on the worker"),
)


def examine(ground: Ground, listed: Sequence[Point] = POINTS) -> list[Finding]:
    """A finding for each point, in the order of the list; none raises."""
    return [_finding(point, ground) for point in listed]


def _finding(point: Point, ground: Ground) -> Finding:
    state: State
    try:
        state, found = "ok", point.look(ground)
    except Skipped as reason:
        state, found = "skipped", str(reason)
    except Wrong as reason:
        state, found = "wrong", str(reason)
    except VoicepodError as error:
        state, found = "wrong", error.message
    except Exception as error:
        state, found = "wrong", f"failed with {type(error).__name__}"
    return Finding(point.problem, point.point, state, found, point.fix)


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Prints the findings; 0 when none is wrong, 2 when the command is not understood."""
    if set(argv) - {"--google", "--json"}:
        print(__doc__, file=sys.stderr)
        return 2
    findings = examine(Ground(environ, asks_google="--google" in argv))
    if "--json" in argv:
        print(json.dumps([{name: getattr(f, name) for name in Finding.__slots__} for f in findings], indent=2))
    else:
        print("\n".join(_lines(findings)))
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


def _lines(findings: Sequence[Finding]) -> list[str]:
    lines: list[str] = []
    problem = ""
    for finding in findings:
        if finding.problem != problem:
            problem = finding.problem
            lines.append(problem)
        lines.append(f"  {finding.state:<8}{finding.point}: {finding.found}")
        if finding.state == "wrong":
            lines.append(f"          -> {finding.fix}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
