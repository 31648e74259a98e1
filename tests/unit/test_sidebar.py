"""The sidebar's words and its plot."""

from __future__ import annotations

from typing import Any

from ui.sidebar import POINTS, TICK_S, LoadHistory, machine_html, plot_html, session_html

GIB = 1024**3


def metrics(**changes: Any) -> dict[str, Any]:
    card = {
        "name": "Card <b>",
        "utilisation_percent": 40.0,
        "memory_used_bytes": 6 * GIB,
        "memory_total_bytes": 24 * GIB,
        "temperature_c": 61.0,
    }
    figures = {
        "cpu_percent": 25.0,
        "memory_used_bytes": 2 * GIB,
        "memory_total_bytes": 8 * GIB,
        "gpus": (card,),
        "sessions_active": 1,
        "max_sessions": 4,
    }
    return {**figures, **changes}


def test_the_machine_is_told_with_its_card() -> None:
    shown = machine_html(metrics())
    for words in ("1 of 4", "25 %", "2.0 of 8.0 GiB", "40 %, 61 °C", "6.0 of 24.0 GiB"):
        assert words in shown


def test_a_cards_name_cannot_bring_markup() -> None:
    assert "Card &lt;b&gt;" in machine_html(metrics())


def test_what_is_not_known_is_a_dash() -> None:
    unknown = {"cpu_percent": None, "memory_used_bytes": None, "memory_total_bytes": None, "gpus": ()}
    assert machine_html(metrics(**unknown)).count("–") == 2
    history = LoadHistory()
    history.add(metrics(**unknown), 0.0)
    assert history.lines(0.0) == {}
    assert "polyline" not in plot_html({})


def test_a_conversation_without_turns_says_what_to_do() -> None:
    assert "Press Start" in session_html(None)
    figures = {"turns": 3, "v2v_p50_ms": 1030.0, "v2v_last_ms": None, "interruptions": 1}
    assert "1.03 s" in session_html(figures)
    assert "–" in session_html(figures)


def test_the_plot_keeps_a_few_minutes_however_many_pages_ask() -> None:
    history = LoadHistory()
    for tick in range(2 * POINTS):
        history.add(metrics(), tick * 2.0)
        history.add(metrics(), tick * 2.0 + 0.5)
    lines = history.lines(2 * POINTS * 2.0)
    assert set(lines) == {"CPU", "Memory", "GPU"}
    for line in lines.values():
        assert len(line) == POINTS
        assert all(0 <= ago <= POINTS * TICK_S for ago, _ in line)


def test_each_line_is_drawn_from_the_left_to_now_at_its_height() -> None:
    drawn = plot_html({"CPU": [(240.0, 0.0), (120.5, 25.5), (0.0, 100.0)], "GPU <b>": [(2.0, 40.0)]})
    assert 'viewBox="0 0 240 100"' in drawn
    assert '<polyline class="vp-line-0" points="0,100 119.5,74.5 240,0"/>' in drawn
    assert '<polyline class="vp-line-1" points="238,60"/>' in drawn
    assert "GPU &lt;b&gt;" in drawn
