"""The figures of a self-test, held against the targets, with advice in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

GIB: Final = 1024**3

# A first answer within the pause that people leave, on one card of 24 GB and up with one talk; an interruption is
# obeyed before it is said; eight talks at once where there are as many seats.
V2V_P50_MS, V2V_P95_MS = 700.0, 1100.0
STOP_P50_MS, STOP_P95_MS = 250.0, 350.0
TALKS: Final = 8
FULL_CARD: Final = 0.95
SLOW_SPEECH: Final = 0.8  # RTF above which one hitch of the machine is heard as a gap

PART_NAMES: Final = {
    "endpointing": "waiting for the end of the utterance",
    "asr": "speech recognition",
    "prompt": "preparing the history",
    "llm_first_token": "the language model's first word",
    "first_clause": "the rest of its first clause",
    "tts_first_audio": "the first sound of the voice",
    "send": "sending it",
    "playout": "playing it",
}
ADVICE: Final = {
    "endpointing": "Most of the wait is the silence that ends an utterance. A smaller turn.end_wait_ms answers sooner "
    "and cuts people off more often.",
    "asr": "Speech recognition takes most of the wait. Use a smaller models.whisper_model, or asr.device cuda.",
    "prompt": "Preparing the history takes most of the wait. Lower llm.history_tokens.",
    "llm_first_token": "The language model begins late. Use a smaller one, or lower llm.history_tokens.",
    "first_clause": "The language model writes slowly. Use a smaller one, or one with fewer bits a weight.",
    "tts_first_audio": "The voice begins late. Lower turn.first_clause_min_chars, or choose a faster tts.engine.",
    "send": "The way to the client is slow. Measure on the server itself, then look at the network and its proxies.",
    "playout": "The client plays late. Measure on the server itself, then look at the network.",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """Of `n` values; p95 of fewer than twenty is the largest."""

    p50: float
    p95: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without a value."""
        ordered = sorted(values)
        if not ordered:
            return None
        half, most = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
        return cls(round(half, 1), round(most, 1), len(ordered))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use; None where it is not known. `card_*` are of all cards together."""

    process: int | None = None
    card_used: int | None = None
    card_total: int | None = None


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds of computing for a second of audio; None where it is not known."""

    asr: float | None = None
    tts: float | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """So many talks at once were answered in time. `limit` says why it is not more: seats, behind, bound or people."""

    n: int
    limit: str


@dataclass(frozen=True, slots=True)
class Target:
    """One measured figure, and what it should be. `is_met` None: not measured."""

    name: str
    target: float
    measured: float | None

    @property
    def is_met(self) -> bool | None:
        """Whether it is."""
        return None if self.measured is None else self.measured <= self.target


@dataclass(frozen=True, slots=True)
class Report:
    """One self-test. Times in ms. `failures` are codes of questions that got no answer."""

    engines: dict[str, str]
    v2v_ms: Spread | None
    parts_ms: dict[str, Spread]
    stop_ms: Spread | None
    longest_gap_ms: float
    rtf: Speeds
    talks: Fit
    memory: Memory
    failures: tuple[str, ...] = ()
    at: str = ""
    targets: tuple[Target, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = (
            ("answer", self.v2v_ms, V2V_P50_MS, V2V_P95_MS),
            ("interruption", self.stop_ms, STOP_P50_MS, STOP_P95_MS),
        )
        targets: list[Target] = []
        for name, spread, typical, slowest in found:
            targets.append(Target(f"{name}, typical (ms)", typical, None if spread is None else spread.p50))
            targets.append(Target(f"{name}, slowest of twenty (ms)", slowest, None if spread is None else spread.p95))
        object.__setattr__(self, "targets", tuple(targets))

    @property
    def has_card(self) -> bool:
        """Whether the server has a GPU."""
        return bool(self.memory.card_total)

    @property
    def is_fine(self) -> bool:
        """Whether every question was answered and every target is met."""
        return not self.failures and all(target.is_met for target in self.targets)

    def verdict(self) -> str:
        """One sentence."""
        if self.is_fine:
            return "Fine: all targets are met."
        missed = [target.name.removesuffix(" (ms)") for target in self.targets if target.is_met is False]
        words = [f"Slower than the targets: {'; '.join(missed)}."] if missed else []
        unknown = [target.name.removesuffix(" (ms)") for target in self.targets if target.is_met is None]
        words += [f"Not measured: {'; '.join(unknown)}."] if unknown else []
        words += [f"{len(self.failures)} questions got no answer."] if self.failures else []
        if not self.has_card:
            words.append("The targets are for a GPU, and this server has none: what counts here is that it works.")
        return " ".join(words)

    def advice(self) -> list[str]:
        """What to do, the weightiest first."""
        return list(self._advice())

    def _advice(self) -> Iterator[str]:
        if self.failures:
            yield f"Questions failed with: {', '.join(sorted(set(self.failures)))}. The server's log says more."
        if self.parts_ms and any(target.is_met is False for target in self.targets[:2]):
            yield ADVICE.get(max(self.parts_ms, key=lambda part: self.parts_ms[part].p50), "")
        if self.rtf.tts is not None and self.rtf.tts > SLOW_SPEECH:
            yield f"The voice needs {self.rtf.tts:.2f} s for a second of speech: expect gaps. Change tts.engine."
        if self.longest_gap_ms > 100:
            yield f"An answer stopped for {self.longest_gap_ms:.0f} ms in the middle: something else uses this machine."
        if self.talks.limit == "behind":
            yield f"Set system.max_concurrent_users to {self.talks.n}: with more talks at once answers come late."
        elif self.talks.limit == "seats" and self.has_card and self.talks.n < TALKS:
            yield "All seats were served in time: system.max_concurrent_users may be larger."
        if (
            self.memory.card_used
            and self.memory.card_total
            and self.memory.card_used > FULL_CARD * self.memory.card_total
        ):
            yield "The card's memory is all but full: use smaller models, or fewer bits a weight."

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        targets = [{**asdict(target), "is_met": target.is_met} for target in self.targets]
        told = {"is_fine": self.is_fine, "has_card": self.has_card, "verdict": self.verdict(), "advice": self.advice()}
        return {
            "object": "selftest_report",
            **asdict(self),
            "failures": list(self.failures),
            "targets": targets,
            **told,
        }


def in_words(report: Report) -> str:
    """For a terminal."""

    def row(name: str, spread: Spread | None) -> str:
        if spread is None:
            return f"  {name:<42} not measured"
        return f"  {name:<42} p50 {spread.p50:6.0f} ms   p95 {spread.p95:6.0f} ms   n={spread.n}"

    def number(value: float | None, unit: str = "") -> str:
        return "not known" if value is None else f"{value:.2f}{unit}"

    def gib(value: int | None) -> str:
        return "not known" if value is None else f"{value / GIB:.1f} GiB"

    limits = {
        "seats": "all seats that the test may take",
        "behind": "with one more, answers came late",
        "bound": "more were not tried",
        "people": "more were not tried: people talk",
    }
    lines = [
        "Engines: " + ", ".join(f"{kind} {model}" for kind, model in report.engines.items()),
        row("from the last word to the answer", report.v2v_ms),
        *(row(f"  {PART_NAMES.get(part, part)}", spread) for part, spread in report.parts_ms.items()),
        row("from an interruption to silence", report.stop_ms),
        f"  {'longest gap in an answer':<42} {report.longest_gap_ms:6.0f} ms",
        f"  {'computing for a second of audio':<42} recognition {number(report.rtf.asr, ' s')}, "
        f"speech {number(report.rtf.tts, ' s')}",
        f"  {'talks at once in time':<42} {report.talks.n} ({limits[report.talks.limit]})",
        f"  {'memory':<42} server {gib(report.memory.process)}"
        + (f", cards {gib(report.memory.card_used)} of {gib(report.memory.card_total)}" if report.has_card else ""),
        "",
        report.verdict(),
        *(f"- {words}" for words in report.advice()),
    ]
    return "\n".join(lines)
