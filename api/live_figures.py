"""Gauges that are asked for at the moment of a scrape, and labels that cannot grow without end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = structlog.get_logger()

# A value for each tuple of label values; None when it is not known.
Reader = Callable[[], Mapping[tuple[str, ...], float | None]]

MAX_LABEL_VALUES: Final = 40


class BoundedLabels:
    """Passes the first `MAX_LABEL_VALUES` different values; every later one is `other`."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """The value, or `other`."""
        if value not in self._known and len(self._known) >= MAX_LABEL_VALUES:
            return "other"
        self._known.add(value)
        return value


class LiveFigures(Collector):
    """Figures that are asked for when somebody scrapes. One that cannot be had is left out, never told as 0."""

    def __init__(self) -> None:
        self.n_errors = 0
        self._sources: list[tuple[str, str, tuple[str, ...], Reader]] = []
        self._failing: set[str] = set()

    def add(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str],
        read: Reader,
    ) -> None:
        """A gauge `voicepod_<name>` that `read` gives the values of."""
        self._sources.append((name, help_text, tuple(labels), read))

    def ask(self, name: str, read: Reader) -> Mapping[tuple[str, ...], float]:
        """What a source says now; nothing when it fails, which is counted."""
        try:
            values = {labels: float(value) for labels, value in read().items() if value is not None}
        except Exception:  # boundary: one broken source must not hide all other figures
            self.n_errors += 1
            if name not in self._failing:  # once until it works again, not at every scrape
                log.exception("metrics.source_failed", metric=name)
            self._failing.add(name)
            return {}
        self._failing.discard(name)
        return values

    def collect(self) -> Iterator[Metric]:
        """One family for each source that has a value."""
        for name, help_text, labels, read in self._sources:
            family = GaugeMetricFamily(f"voicepod_{name}", help_text, labels=labels)
            for label_values, value in self.ask(name, read).items():
                family.add_metric(list(label_values), value)
            if family.samples:
                yield family
        errors = CounterMetricFamily("voicepod_collector_errors", "Figures that could not be read for a scrape.")
        errors.add_metric([], self.n_errors)
        yield errors

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the registry would ask every source at start otherwise."""
        return []
