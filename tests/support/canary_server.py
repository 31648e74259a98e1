"""`python -m tests.support.canary_server DIRECTORY PORT`: the server with its page, scripted engines and all logs."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

import ui
from api.application import Server
from api.http_server import HttpServer
from logs import configure_logging
from pipeline.engines.base import Engines
from settings import Settings
from tests.support.scripted import ScriptedAsr, ScriptedLlm, ScriptedTts, ScriptedVad


def serve(directory: Path, port: int) -> None:
    """Until interrupted. Settings and engines hold the canaries that `tests/integration/test_canaries.py` plants."""
    settings = Settings.model_validate(
        {
            "tts": {"voice": "anna"},
            "system": {"log_level": "DEBUG"},
            "security": {"rate_limiting": False},
            "storage": {"dir": directory, "words_days": 1},
            "llm": {"api_key": "canary-llm-key"},
            "alerts": {"webhook_url": "https://canary-webhook.test/path"},
        }
    )
    configure_logging(settings, json=True)
    heard = [f"canary-heard number {number}" for number in range(20)]
    replies: list[str | Exception] = [f"canary-reply number {number}." for number in range(20)]
    tts = ScriptedTts(first_audio_s=0.0, real_time_factor=0.0)
    server = Server(
        settings,
        Engines(ScriptedVad(), ScriptedAsr(list(heard), delay_s=0.0), ScriptedLlm(replies, 0.0, 0.0), tts),
        speakers=lambda: None,
    )
    page = ui.PageContext(metrics=server.page_metrics, session_figures=server.page_session_figures)
    ui.mount(server.app, page, guard=server.guard)
    config = uvicorn.Config(server.app, host="127.0.0.1", port=port, log_config=None, proxy_headers=False)
    HttpServer(config, before_closing=server.drain).run()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
