"""The sidebar: how busy the machine is, and the figures of this conversation."""

from __future__ import annotations

import html
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd  # type: ignore[import-untyped]

from ui.gradio_import import gradio as gr

if TYPE_CHECKING:
    from ui.page import PageContext

TICK_S = 2
POINTS = 120  # more made the plot slow in the browser
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

    def frame(self, now_s: float) -> pd.DataFrame:
        """Rows of seconds ago, percent and what: the form that the plot wants."""
        rows = [(round(at - now_s, 1), value, name) for at, values in self._points for name, value in values.items()]
        return pd.DataFrame(rows, columns=["seconds", "percent", "what"])


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

    def tick(current: str, request: gr.Request) -> tuple[pd.DataFrame, str, str]:
        metrics = page.metrics()
        now_s = time.monotonic()
        history.add(metrics, now_s)
        figures = page.session_figures(current, request.request) if current and request.request else None
        return history.frame(now_s), machine_html(metrics), session_html(figures)

    with gr.Sidebar(open=False, position="right", width=300):
        figures = gr.HTML(session_html(None), js_on_load=None)
        machine = gr.HTML(js_on_load=None)
        plot = gr.LinePlot(
            x="seconds",
            y="percent",
            color="what",
            color_map={"CPU": "#4f46e5", "Memory": "#14a38b", "GPU": "#e08c1b"},
            color_title=" ",
            x_lim=[-POINTS * TICK_S, 0],
            y_lim=[0, 100],
            x_title="seconds",
            y_title="%",
            height=200,
            show_label=False,
        )
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
