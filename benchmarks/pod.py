"""One card, all engines: how soon an answer is heard (T3), and how many talks are served at once (T12).

    python -m benchmarks.pod --profile gpu
    python -m benchmarks.pod --config configs/gpu-48gb.json --groups "asr+llm,tts" "asr+llm+tts" ""
    python -m benchmarks.pod --profile gpu --device cpu --talks 2 --turns 3      a try on a machine without a card

Runs the self-test on a server of its own, once for each grouping of engines into processes ("": all in the server's).
Real models are used where they are there. Else FireRedTTS-2 gets full-size random weights, whose cost is that of real
ones (tiny ones on a CPU), and F5-TTS, the recogniser and the language model tiny random ones, whose cost is next to
nothing: the table says which. All options that are not listed are those of `app.py`. Prints Markdown for
docs/measurements.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import process_tuning  # noqa: F401 (before numpy)
from api.gpus import Gpus
from api.selftest.measure import Plan
from api.selftest.report import GIB, Report
from logs import configure_logging, release_logging
from pipeline.engines.tiny_models import write_tiny_models
from pipeline.errors import ConfigError, VoicepodError
from pipeline.model_needs import require_models
from scripts.selftest import of_own_server, private
from settings import Settings, cache_directory
from settings_sources import RANDOM_TINY, RANDOM_TINY_F5, load_settings

T3_MS, T12_TALKS = (700, 1100), 8  # p50 and p95 of one talk; talks whose p95 is at most 1.5 times that
COLUMNS = ("processes", "v2v p50", "v2v p95", "talks in time", "stop p50", "ASR RTF", "TTS RTF", "card")


def main(argv: Sequence[str]) -> int:
    """Print the table; gives the exit status."""
    options, rest = _parser().parse_known_args(argv)
    try:
        settings, weights = with_weights(private(load_settings(rest, os.environ).settings))
        configure_logging(settings, json=False)
        print(heading(weights))
        for groups in options.groups or [",".join(settings.system.engine_processes)]:
            report = asyncio.run(of_own_server(grouped(settings, groups), Plan(options.turns, options.talks)))
            print(row(groups, report), flush=True)
    except VoicepodError as error:
        print(f"pod: {error.message}", file=sys.stderr)
        return 2
    finally:
        release_logging()
    return 0


def with_weights(settings: Settings) -> tuple[Settings, dict[str, str]]:
    """The settings with a model for every engine, and in words which weights each has."""
    root = cache_directory(os.environ) / "random-tiny"
    weights = {}
    for key, folder in RANDOM_TINY.items():
        section, _, name = key.partition(".")
        kind = "tts" if section == "models" else section
        if getattr(getattr(settings, section), name) is not None or _is_there(settings, kind):
            weights[kind] = "real"
            continue
        is_f5 = kind == "tts" and settings.tts.engine == "f5"
        directory, weights[kind] = root / (RANDOM_TINY_F5 if is_f5 else folder), "tiny random"
        if kind == "tts" and not is_f5 and Gpus().read():
            directory, weights[kind] = _full_size(root.parent / "random-full" / folder), "full-size random"
        else:
            write_tiny_models(root)
        changed = getattr(settings, section).model_copy(update={name: directory})
        settings = settings.model_copy(update={section: changed})
    return settings.model_copy(update={"asr": settings.asr.model_copy(update={"light_model": None})}), weights


def _is_there(settings: Settings, kind: str) -> bool:
    """Whether the manifest's model of one engine is on the disk; the others are asked for at paths of their own."""
    for key in RANDOM_TINY:
        section, _, name = key.partition(".")
        if section != ("models" if kind == "tts" else kind):
            changed = getattr(settings, section).model_copy(update={name: Path(os.curdir)})
            settings = settings.model_copy(update={section: changed})
    asr = settings.asr.model_copy(update={"light_model": None})
    try:
        require_models(settings.model_copy(update={"asr": asr}))
    except ConfigError:
        return False
    return True


def _full_size(directory: Path) -> Path:
    from firered.random_checkpoint import write_random_checkpoint

    write_random_checkpoint(directory, "full", say=lambda line: print(line, file=sys.stderr))
    return directory


def grouped(settings: Settings, groups: str) -> Settings:
    """The settings with the engines in these processes. `ConfigError` for a grouping that cannot be."""
    names = tuple(group for group in groups.split(",") if group)
    try:
        checked = Settings.model_validate({"system": {"engine_processes": names}}).system.engine_processes
    except ValueError as error:
        raise ConfigError(f"--groups {groups!r} is not accepted: write groups as in asr+llm,tts") from error
    return settings.model_copy(update={"system": settings.system.model_copy(update={"engine_processes": checked})})


def heading(weights: dict[str, str]) -> str:
    """When, where and on which weights, and the head of the table."""
    cards = ", ".join(card.name for card in Gpus().read()) or f"no card, {platform.machine()}, {os.cpu_count()} cores"
    about = "; ".join(f"{kind}: {words} weights" for kind, words in weights.items())
    return "\n".join(
        [
            f"{datetime.now(UTC):%Y-%m-%d}, {cards}. {about}.",
            f"Targets: v2v {T3_MS[0]} / {T3_MS[1]} ms, {T12_TALKS} talks in time. Times in ms.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
        ]
    )


def row(groups: str, report: Report) -> str:
    """One line of the table."""

    def number(value: float | None, digits: int = 0) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    v2v, stop, memory = report.v2v_ms, report.stop_ms, report.memory
    cells = [
        groups or "none",
        number(None if v2v is None else v2v.p50),
        number(None if v2v is None else v2v.p95),
        f"{report.talks.n} ({report.talks.limit})" + (f", {len(report.failures)} failed" if report.failures else ""),
        number(None if stop is None else stop.p50),
        number(report.rtf.asr, 2),
        number(report.rtf.tts, 2),
        f"{memory.card_used / GIB:.1f} GiB" if memory.card_used else "–",
    ]
    return f"| {' | '.join(cells)} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pod",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--groups", nargs="+", metavar="GROUPS", help="engine processes to compare; none: the setting")
    parser.add_argument("--turns", type=int, default=20, metavar="N", help="questions in the one talk (20)")
    parser.add_argument("--talks", type=int, default=12, metavar="N", help="talks at once that are tried at most (12)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
