"""The sidebar: how busy the machine is, and the figures of this conversation."""

from __future__ import annotations

import html
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ui.gradio_import import gradio as gr

if TYPE_CHECKING:
    from ui.page import PageContext

TICK_S = 2
POINTS = 120
COLOURS = 4  # of lines, in static/page.css
GIB = 1024**3
SELF_TEST = '<div class="vp-figures" id="vp-selftest" hidden></div>'  # static/selftest.js fills it for administrators
LOG_OUT = '<form class="vp-figures" method="post" action="logout"><button type="submit">Log out</button></form>'


def _share(used: float | None, total: float | None) -> float | None:
    return 100.0 * used / total if used is not None and total else None


class LoadHistory:
    """The last few minutes of load, shared by all open pages: at most one sample a tick, whoever asks."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, dict[str, float]]] = deque(maxlen=POINTS)

    def add(self, metrics: Mapping[str, Any], now_s: float) -> None:
        """Keep the percentages of `metrics` as of `now_s`, unless the last ones are less than a tick old."""
        if self._points and now_s - self._points[-1][0] < TICK_S * 0.9:
            return
        values = {
            "CPU": metrics["cpu_percent"],
            "Memory": _share(metrics["memory_used_bytes"], metrics["memory_total_bytes"]),
        }
        for index, gpu in enumerate(metrics.get("gpus", ())):
            values["GPU" if index == 0 else f"GPU {index}"] = gpu["utilisation_percent"]
        known = {name: float(value) for name, value in values.items() if value is not None}
        self._points.append((now_s, known))

    def lines(self, now_s: float) -> dict[str, list[tuple[float, float]]]:
        """What -> (seconds ago, percent), the oldest first."""
        lines: dict[str, list[tuple[float, float]]] = {}
        for at, values in self._points:
            if now_s - at > POINTS * TICK_S:
                continue  # no page was open for a while
            for name, percent in values.items():
                lines.setdefault(name, []).append((round(now_s - at, 1), percent))
        return lines


def plot_html(lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """The load as a small drawing. Gradio's plot took a tenth of a core of everybody who had the page open."""
    wide = POINTS * TICK_S
    classes = {name: f"vp-line-{number % COLOURS}" for number, name in enumerate(lines)}
    drawn = "".join(
        f'<polyline class="{classes[name]}" points="'
        + " ".join(f"{wide - ago:g},{100 - percent:g}" for ago, percent in line)
        + '"/>'
        for name, line in lines.items()
    )
    names = "".join(f'<span class="{classes[name]}">{html.escape(name)}</span>' for name in lines)
    return (
        f'<figure class="vp-figures vp-plot"><svg viewBox="0 0 {wide} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="Load of the last {wide // 60} minutes, 0 to 100 %">'
        f'<path d="M0 0H{wide}M0 50H{wide}M0 100H{wide}"/>{drawn}</svg><figcaption>{names}</figcaption></figure>'
    )


def machine_html(metrics: Mapping[str, Any]) -> str:
    """The host's figures as HTML; what is not known is a dash."""
    rows = [
        ("Talks", f"{metrics['sessions_active']} of {metrics['max_sessions']}"),
        ("CPU", _percent(metrics["cpu_percent"])),
        ("Memory", _memory(metrics)),
    ]
    for gpu in metrics.get("gpus", ()):
        temperature = "" if gpu["temperature_c"] is None else f", {gpu['temperature_c']:.0f} °C"
        rows.append((gpu["name"], f"{_percent(gpu['utilisation_percent'])}{temperature}"))
        rows.append(("its memory", _memory(gpu)))
    return _table("This machine", rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} %"


def _memory(of: Mapping[str, Any]) -> str:
    used, total = of["memory_used_bytes"], of["memory_total_bytes"]
    return "–" if used is None or not total else f"{used / GIB:.1f} of {total / GIB:.1f} GiB"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value / 1000:.2f} s"


def session_html(figures: Mapping[str, Any] | None) -> str:
    """The figures of one conversation as HTML; a hint when there is none."""
    if figures is None:
        return '<div class="vp-figures"><h3>This conversation</h3><p>Press Start to begin.</p></div>'
    return _table(
        "This conversation",
        [
            ("Turns", str(figures["turns"])),
            ("Answer after, typical", _ms(figures.get("v2v_p50_ms"))),
            ("Answer after, last", _ms(figures.get("v2v_last_ms"))),
            ("Interruptions", str(figures["interruptions"])),
        ],
    )


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in rows)
    return f'<div class="vp-figures"><h3>{title}</h3><dl>{cells}</dl></div>'


def build_sidebar(page: PageContext, session_id: gr.State) -> None:
    """Put the sidebar into the Blocks that are being built. It starts closed: on a phone it covers the whole page."""
    history = LoadHistory()

    def tick(current: str, request: gr.Request) -> tuple[str, str, str]:
        metrics = page.metrics()
        now_s = time.monotonic()
        history.add(metrics, now_s)
        figures = page.session_figures(current, request.request) if current and request.request else None
        return plot_html(history.lines(now_s)), machine_html(metrics), session_html(figures)

    with gr.Sidebar(open=False, position="right", width=300):
        figures = gr.HTML(session_html(None), js_on_load=None)
        machine = gr.HTML(js_on_load=None)
        plot = gr.HTML(js_on_load=None)
        gr.HTML(SELF_TEST, js_on_load=None)
        if page.can_log_out:
            gr.HTML(LOG_OUT, js_on_load=None)
    gr.Timer(TICK_S).tick(
        tick,
        [session_id],
        [plot, machine, figures],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
        concurrency_limit=None,
    )
