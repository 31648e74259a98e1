"""The page's Gradio surface gives nothing away: no event takes a file, no forged path is read, no upload is kept."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.scripted_server import ScriptedServer
from tests.support.visited import visited
from ui import gradio_import
from ui.gradio_import import gradio as gr
from ui.own_files import VERSION
from ui.page import in_event_loop, mount_blocks

# Gradio's queue sets an option that its pandas calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'")


@pytest.fixture(scope="module")
def scripted() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture(scope="module")
def client(scripted: ScriptedServer) -> Iterator[TestClient]:
    with TestClient(scripted.app) as client:
        yield client


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("only the server may read this")
    return path


def forged(path: Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": "a.wav", "meta": {"_type": "gradio.FileData"}}


def events(client: TestClient) -> list[dict[str, Any]]:
    config = client.get("/config").json()
    dependencies: list[dict[str, Any]] = config["dependencies"]
    assert dependencies
    return dependencies


def test_no_event_has_an_input_that_takes_a_file(client: TestClient) -> None:
    config = client.get("/config").json()
    types = {component["id"]: component["type"] for component in config["components"]}
    taking = {
        "audio",
        "file",
        "image",
        "video",
        "gallery",
        "uploadbutton",
        "multimodaltextbox",
        "model3d",
        "imageeditor",
    }
    for event in config["dependencies"]:
        assert not {types[component] for component in event["inputs"]} & taking
    assert not set(types.values()) & taking


def test_no_event_is_part_of_a_public_api(client: TestClient) -> None:
    assert client.get("/gradio_api/info").status_code == 404
    assert all(event["api_visibility"] == "private" for event in events(client))


def test_a_forged_file_is_refused_by_every_event(client: TestClient, secret: Path) -> None:
    for event in events(client):
        for n_inputs in (1, max(1, len(event["inputs"]))):
            body = {"fn_index": event["id"], "data": [forged(secret)] * n_inputs, "session_hash": "forged"}
            for route in ("run/predict", "queue/join"):
                answer = client.post(f"/gradio_api/{route}", json=body)
                assert "only the server" not in answer.text
            assert not copied(secret)


def test_a_page_that_took_files_would_still_refuse_a_forged_one(secret: Path) -> None:
    """A mounted app accepts them unless the mount says that it was launched: this is what that line is for."""
    taken: list[object] = []

    def blocks() -> gr.Blocks:
        demo: gr.Blocks
        with gr.Blocks(analytics_enabled=False) as demo:
            sound = gr.Audio(type="filepath")
            sound.upload(taken.append, sound, None)
        return demo

    app = FastAPI()
    mount_blocks(app, in_event_loop(blocks))
    with TestClient(app, raise_server_exceptions=False) as client:
        for route in ("run/predict", "queue/join"):
            body = {"fn_index": 0, "data": [forged(secret)], "session_hash": "forged"}
            client.post(f"/gradio_api/{route}", json=body)
        client.get("/gradio_api/queue/data", params={"session_hash": "forged"})
    assert not taken
    assert not copied(secret)


def copied(secret: Path) -> list[Path]:
    """Copies of the file in Gradio's cache, which it would serve to anyone."""
    from gradio.utils import get_upload_folder

    folder = Path(get_upload_folder())
    return [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() == secret.read_bytes()]


def test_no_function_of_a_component_can_be_called(client: TestClient, secret: Path) -> None:
    config = client.get("/config").json()
    for component in config["components"]:
        for name in ("page_token", "preprocess", "get_config", "push_to_hub", "__init__"):
            for data in (None, forged(secret)):
                body = {"data": data, "fn_name": name, "session_hash": "x", "component_id": component["id"]}
                assert client.post("/gradio_api/component_server", json=body).status_code == 404
    assert not copied(secret)


FORGED_PATHS = ["{secret}", "../../../../../../../..{secret}", "file://{secret}", "/proc/self/environ", "\\\\?{secret}"]
SHAPES: list[Callable[[dict[str, Any]], Any]] = [
    lambda file: file,
    lambda file: [file],
    lambda file: {"value": file},
    lambda file: {"a": [{"b": file}]},
    lambda file: [[file, "caption"]],
]


def test_no_form_of_a_forged_file_reaches_a_handler_the_cache_or_another_server(secret: Path) -> None:
    """Routes, forms and paths, on a page that takes files: ours takes none, and is to stay safe if it ever did."""
    taken: list[object] = []
    app = FastAPI()
    mount_blocks(app, in_event_loop(lambda: taking_files(taken)))
    with visited() as (url, hits), TestClient(app, raise_server_exceptions=False) as client:
        files = [{**forged(secret), "path": path.format(secret=secret), "url": f"{url}/x"} for path in FORGED_PATHS]
        files += [{**forged(secret), "path": f"{url}/x.wav"}, {**forged(secret), "path": "", "url": f"{url}/x.wav"}]
        for event, file, shape in itertools.product(events(client), files, SHAPES):
            body = {"fn_index": event["id"], "data": [shape(file)], "session_hash": "forged"}
            for route in ("run/predict", "queue/join"):
                assert "only the server" not in client.post(f"/gradio_api/{route}", json=body).text
        client.get("/gradio_api/queue/data", params={"session_hash": "forged"})
        assert hits == []
    assert taken == []
    assert not copied(secret)


def taking_files(taken: list[object]) -> gr.Blocks:
    demo: gr.Blocks
    with gr.Blocks(analytics_enabled=False) as demo:
        for component in (gr.Audio(type="filepath"), gr.File()):
            component.upload(taken.append, component, None, queue=False)
    return demo


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/x",
        "/vx/../page.py",
        "/vx/%2e%2e/page.py",
        "/static/../../../etc/passwd",
        "/docs",
        "/openapi.json",
        "/monitoring",
        "/monitoring/summary",
    ],
)
def test_no_file_of_the_server_and_no_inner_page_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (400, 403, 404), answer.text[:200]
    assert "root:" not in answer.text


def test_nothing_can_be_uploaded(client: TestClient) -> None:
    for route in ("/gradio_api/upload", "/gradio_api/upload/", "/upload"):
        answer = client.post(route, files={"files": ("x.html", b"<script>alert(1)</script>")})
        assert answer.status_code in (404, 405)


def test_the_page_names_no_other_host_and_sends_no_analytics(client: TestClient) -> None:
    page = client.get("/").text
    config = json.loads(json.dumps(client.get("/config").json()))
    assert config["analytics_enabled"] is False
    assert "fonts.googleapis.com" not in page
    assert "cdnjs" not in page
    assert config["footer_links"] == []


def test_a_browser_keeps_the_pages_own_files_until_an_update(client: TestClient) -> None:
    addresses = set(re.findall(r"vx/[\w-]+/[\w.-]+", client.get("/config").json()["head"]))
    assert {f"vx/{VERSION}/{name}" for name in ("voice.js", "page.css", "steady-fetch.js")} <= addresses
    for address in addresses:
        answer = client.get(f"/{address}")
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable")
    current = client.get(f"/vx/{VERSION}/voice.js")
    assert "javascript" in current.headers["Content-Type"]
    for address in ("/vx/voice.js", "/vx/0123456789abcdef/voice.js"):  # a page that was opened before an update
        answer = client.get(address, headers={"If-None-Match": "another"})
        assert (answer.content, answer.headers["Cache-Control"]) == (current.content, "no-cache")


def test_a_file_that_is_not_there_is_kept_by_nobody(client: TestClient) -> None:
    answer = client.get(f"/vx/{VERSION}/nothing.js")
    assert answer.status_code == 404
    assert "Cache-Control" not in answer.headers


def test_while_gradio_is_imported_it_writes_no_type_stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def parse(_: str, name: str) -> tuple[None, None]:
        parsed.append(name)
        return None, None

    monkeypatch.setattr(gr.component_meta, "extract_class_source_code", parse)
    with pytest.raises(ValueError, match="source code"):
        type("Outside", (gr.HTML,), {})
    assert parsed == ["Outside"]
    assert inspect.getfile(gr.HTML).endswith("html.py")
    monkeypatch.setattr(inspect, "getfile", gradio_import.no_file_of_a_component)
    type("Inside", (gr.HTML,), {})
    type("InsideToo", (gr.Blocks,), {})
    assert parsed == ["Outside"]
    assert inspect.getfile(gr).endswith("__init__.py")


def test_the_import_of_gradio_leaves_python_as_it_was_and_each_event_its_own_documentation() -> None:
    assert inspect.isclass(jinja2.Template)
    assert inspect.getfile is not gradio_import.no_file_of_a_component  # torch has one of its own
    assert gc.isenabled()
    for component in (gr.Textbox, gr.Slider):
        assert component.__name__ in str(component.change.__doc__)


async def test_gradios_queue_which_nothing_uses_does_not_look_for_work(scripted: ScriptedServer) -> None:
    loop, looks = asyncio.get_running_loop(), 0
    call_at = loop.call_at

    def counted(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        nonlocal looks
        looks += 1
        return call_at(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        async with scripted.app.router.lifespan_context(scripted.app):
            patch.setattr(loop, "call_at", counted)
            await asyncio.sleep(0.3)
    assert looks < 20  # 1000 a second were usual
