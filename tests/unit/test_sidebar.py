"""The sidebar's words and its plot."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ui.own_files import STATIC
from ui.sidebar import COLOURS, POINTS, TICK_S, LoadHistory, machine_html, plot_html, session_html

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


def test_what_was_before_a_long_time_without_pages_is_not_drawn() -> None:
    history = LoadHistory()
    history.add(metrics(cpu_percent=90.0), 0.0)
    history.add(metrics(cpu_percent=10.0), 3600.0)
    assert history.lines(3600.5)["CPU"] == [(0.5, 10.0)]


@pytest.mark.parametrize(("theme", "background"), [("", "#f8fafc"), (".dark ", "#0f172a")])
def test_each_line_stands_out_from_the_sidebar_in_light_and_dark(theme: str, background: str) -> None:
    css = (STATIC / "page.css").read_text(encoding="utf-8")
    for number in range(COLOURS):
        rules = {
            found[0]: found[1] for found in re.findall(rf"(\.dark |)\.vp-line-{number} {{ --line: (#\w+); }}", css)
        }
        assert contrast(rules.get(theme, rules[""]), background) >= 3  # WCAG 1.4.11


def contrast(colour: str, background: str) -> float:
    """By WCAG 2."""

    def light(code: str) -> float:
        shares = [int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, bright = sorted((light(colour), light(background)))
    return (bright + 0.05) / (dark + 0.05)


def test_each_line_is_drawn_from_the_left_to_now_at_its_height() -> None:
    drawn = plot_html({"CPU": [(240.0, 0.0), (120.5, 25.5), (0.0, 100.0)], "GPU <b>": [(2.0, 40.0)]})
    assert 'viewBox="0 0 240 100"' in drawn
    assert '<polyline class="vp-line-0" points="0,100 119.5,74.5 240,0"/>' in drawn
    assert '<polyline class="vp-line-1" points="238,60"/>' in drawn
    assert "GPU &lt;b&gt;" in drawn
