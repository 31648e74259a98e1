"""The page as Gradio Blocks, and how it is mounted on the server's FastAPI app.

Conversation audio never passes through Gradio: the widget's own script talks to `/v1/realtime`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from ui import own_files
from ui.gradio_import import gradio as gr
from ui.sidebar import build_sidebar

NEVER_S = 86_400.0

# gr.HTML compiles this as a plain function, neither async nor a module, so the real code is imported. The base comes
# from the document: behind a proxy without forwarded headers Gradio's own idea of its root is wrong. The event name has
# to appear in quotes, gr.HTML looks for it in this text.
JS_ON_LOAD = f"""
const base = new URL('.', document.baseURI);
const own = new URL('{own_files.BASE}', base);
import(new URL('voice.js', own)).then(async (voice) => voice.boot({{
  element,
  config: props.value,
  newToken: (await import(new URL('ticket.js', own))).newTicket(base),
  onSession: (id) => trigger('session', {{ id }}),
}})).catch((error) => console.error('voicepod: the page did not start', error));
"""

# A linked stylesheet: Gradio would put its own selectors before each rule of the `css` argument.
HEAD = f"""
<script src="{own_files.BASE}steady-fetch.js"></script>
<link rel="stylesheet" href="{own_files.BASE}page.css">
{"".join(f'<link rel="modulepreload" href="{address}">' for address in own_files.modules())}
<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">
<meta name="description" content="Talk to a local AI in your browser.">
"""


@dataclass(frozen=True, slots=True)
class PageContext:
    """What the page needs to know of the server: plain values and callables, called in Gradio's threads.

    `metrics` gives the host's figures: cpu_percent, memory_used_bytes,
    memory_total_bytes, gpus (list of name, utilisation_percent, memory_used_bytes, memory_total_bytes, temperature_c),
    sessions_active, max_sessions. `session_figures` gives turns, v2v_p50_ms, v2v_last_ms and interruptions of the
    session with this id, or None when it is not known or not of the one who asks. `personas` maps a name to the
    assistant's instructions; the first one is the default. `can_log_out` where people log in. Without `has_socket` the
    page asks by HTTP.
    """

    metrics: Callable[[], Mapping[str, Any]]
    session_figures: Callable[[str, Request], Mapping[str, Any] | None]
    examples: Sequence[str] = ()
    personas: Mapping[str, str] = field(default_factory=dict)
    can_log_out: bool = False
    has_socket: bool = True


def build_ui(page: PageContext) -> gr.Blocks:
    """The page: a sidebar with figures and the voice widget. No event of it takes a file."""

    def remember_session(event: gr.EventData) -> str:
        session_id = event._data.get("id", "") if isinstance(event._data, dict) else ""
        return str(session_id)[:100]

    demo: gr.Blocks
    with gr.Blocks(title="Voicepod", fill_width=True, analytics_enabled=False) as demo:
        session_id = gr.State("")
        build_sidebar(page, session_id)
        widget = gr.HTML(
            value={"examples": list(page.examples), "personas": dict(page.personas), "socket": page.has_socket},
            html_template='<div class="voicepod-host"></div>',
            js_on_load=JS_ON_LOAD,
            apply_default_css=False,
            elem_id="voicepod-widget",
        )
        widget.session(
            remember_session,
            None,
            session_id,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        )
    return demo


def _theme() -> gr.Theme:
    """System fonts only: a font from elsewhere would tell a third party who opens the page."""
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["Inter", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    )


def _unguarded(app: ASGIApp) -> ASGIApp:
    return app


def mount(
    app: FastAPI, page: PageContext, *, guard: Callable[[ASGIApp], ASGIApp] = _unguarded, path: str = "/"
) -> gr.Blocks:
    """Mount the page on `app` at `path` behind `guard`, its own files at /vx, which hold no secret, before it.

    Call it after every other route was added: Gradio answers the rest.
    """
    app.mount(own_files.MOUNTED_AT, own_files.OwnFiles(), name="voicepod-static")
    demo = in_event_loop(lambda: build_ui(page))
    mount_blocks(app, demo, guard=guard, path=path)
    return demo


def mount_blocks(
    app: FastAPI, demo: gr.Blocks, *, guard: Callable[[ASGIApp], ASGIApp] = _unguarded, path: str = "/"
) -> None:
    """Mount Blocks with no queue, no upload, no public API, no file access, no call to the outside."""
    in_event_loop(
        lambda: gr.mount_gradio_app(
            app,
            demo,
            path=path,
            footer_links=[],
            run_history=False,
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            max_file_size="1kb",
            theme=_theme(),
            head=HEAD,
            app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        )
    )
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    mounted.app = guard(_OnlyNeeded(mounted.app))
    # Gradio skips its check of file paths until this is set, and only launch() sets it: a mounted app would copy any
    # file of the server that a forged request names into its cache and serve it.
    demo.has_launched = True
    # It looks 1000 times a second for queued events, which no event of ours is: 7 % of a core for nothing.
    demo._queue.sleep_when_free = demo._queue.progress_update_sleep_when_free = NEVER_S


T = TypeVar("T")


def in_event_loop(call: Callable[[], T]) -> T:
    """Run `call` while an event loop runs: Gradio makes and forgets loops of its own where there is none."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
    else:
        return call()

    async def calling() -> T:
        return call()

    try:
        return loop.run_until_complete(calling())
    finally:
        loop.close()


# All that the page asks of Gradio. No event is queued and none takes a file.
_NEEDED = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static)/.+"
    r"|/gradio_api/(app_id|run/predict|heartbeat/[A-Za-z0-9]{1,64})/?"
)


class _OnlyNeeded:
    """Gradio without the routes that the page has no use for: queue, files, uploads, proxy, code assistant.

    What is not there cannot fill the disk, read a file or be crashed by a forged request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_there = scope["type"] != "http" or _NEEDED.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
        app = self._app if is_there else Response(status_code=404)
        await app(scope, receive, send)
