"""Logging: where records go, what they look like, and what they can never hold."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from logs import bind_session, configure_logging, escape, release_logging, say
from pipeline.errors import ConfigError
from settings import LoggingSettings, Settings, SystemSettings

ROOT = Path(__file__).resolve().parents[2]
GUIDE_BLOCK = json.loads((ROOT / "tests/fixtures/admin_guide/logging.json").read_text())["logging"]
ATTACKS = {
    "newline": "a\n2026-01-01 [info] forged.record",
    "carriage_return": "a\rforged.record",
    "crlf": "a\r\nforged.record",
    "ansi": "a\x1b[2J\x1b[1;1Hforged.record",
    "c1_control": "a\x9b2Jforged.record",
    "next_line": "a\x85forged.record",
    "line_separator": "a\u2028forged.record",
    "bidi": "a\u202eforged.record\u2066",
    "zero": "a\0forged.record",
    "surrogate": "a\ud800forged.record",
    "quote": 'a", "level": "critical", "event": "forged.record',
}
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Terminal(io.StringIO):
    """Stands for stdout, as a terminal or as a pipe."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    @property
    def lines(self) -> list[str]:
        # Not splitlines(): it also splits where a terminal or a collector of logs does not.
        return self.getvalue().removesuffix("\n").split("\n") if self.getvalue() else []

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal(tty=False)
    # Not sys.stdout itself: pytest's capture sets that anew between the fixtures and the test.
    monkeypatch.setattr("logs.sys", SimpleNamespace(stdout=stream))
    return stream


@pytest.fixture(autouse=True)
def _a_plain_environment(monkeypatch: pytest.MonkeyPatch, logging_as_it_was: None) -> None:
    monkeypatch.delenv("VOICEPOD_CACHE", raising=False)


@contextmanager
def full_disk() -> Iterator[TextIO]:
    """A file that takes nothing; what it was given is still there when it is closed, and fails again."""
    file = Path("/dev/full").open("w")  # noqa: SIM115
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def with_block(block: dict[str, Any]) -> Settings:
    return Settings(logging=LoggingSettings.model_validate(block))


def guide_block(directory: Path) -> dict[str, Any]:
    """The guide's block with its files below `directory`."""
    block: dict[str, Any] = json.loads(json.dumps(GUIDE_BLOCK).replace("/workspace", str(directory)))
    return block


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_a_record_is_one_json_object_with_the_event_its_fields_and_its_source(stdout: Terminal) -> None:
    configure_logging(Settings())
    structlog.get_logger("session").info("turn.done", ttfa_ms=412.5, outcome="completed")
    record = stdout.records[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", record.pop("timestamp"))
    assert record == {
        "event": "turn.done",
        "ttfa_ms": 412.5,
        "outcome": "completed",
        "level": "info",
        "logger": "voicepod.session",
    }


def test_a_logger_without_a_name_is_called_after_its_module(stdout: Terminal) -> None:
    configure_logging(Settings())
    structlog.get_logger().info("turn.done")
    assert stdout.records[0]["logger"] == f"voicepod.{__name__}"


@pytest.mark.parametrize(
    ("tty", "container", "json_asked", "is_json"),
    [
        (False, False, None, True),
        (True, False, None, False),
        (True, True, None, True),
        (True, True, False, False),
        (False, False, False, False),
        (True, False, True, True),
    ],
)
def test_json_unless_a_terminal_outside_a_container(
    tty: bool,
    container: bool,
    json_asked: bool | None,
    is_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    stdout: Terminal,
) -> None:
    monkeypatch.setattr("logs._in_container", lambda: container)
    stdout.tty = tty
    configure_logging(Settings(), json=json_asked)
    structlog.get_logger().info("server.started", port=7860)
    assert stdout.getvalue().startswith("{") == is_json
    assert ("\x1b[" in stdout.getvalue()) == (tty and not is_json)
    assert "server.started" in stdout.getvalue()


@pytest.mark.parametrize(("level", "seen"), [("DEBUG", 3), ("INFO", 2), ("ERROR", 1)])
def test_the_log_level_acts(level: Any, seen: int, stdout: Terminal) -> None:
    configure_logging(Settings(system=SystemSettings(log_level=level)))
    log = structlog.get_logger()
    log.debug("a.b")
    log.info("a.b")
    log.error("a.b")
    assert len(stdout.lines) == seen


def test_libraries_are_heard_from_warning_on_and_uvicorn_from_info_on(stdout: Terminal) -> None:
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(sys.stderr))
    configure_logging(Settings())
    logging.getLogger("library").info("quiet")
    logging.getLogger("library").warning("loud %s", "library")
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    logging.getLogger("uvicorn.access").info("quiet")
    found = [(record["logger"], record["level"], record["event"]) for record in stdout.records]
    assert found == [
        ("library", "warning", "loud library"),
        ("uvicorn.error", "info", "Application startup complete."),
    ]
    assert logging.getLogger("uvicorn").handlers == []


def test_query_strings_stay_out_of_the_access_log(stdout: Terminal) -> None:
    configure_logging(Settings(system=SystemSettings(log_level="DEBUG")))
    access = logging.getLogger("uvicorn.access")
    access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/v1/realtime?ticket=canary", "1.1", 200)
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "127.0.0.1:1", "/ws?key=canary")
    assert [record["event"] for record in stdout.records] == [
        '127.0.0.1:1 - "GET /v1/realtime HTTP/1.1" 200',
        '127.0.0.1:1 - "WebSocket /ws" [accepted]',
    ]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("form", ["json", "readable", "layout"])
def test_no_value_can_forge_a_record(attack: str, form: str, stdout: Terminal) -> None:
    block: dict[str, Any] = {
        "formatters": {"plain": {"format": "%(asctime)s [%(levelname)s] %(name)s: %(message)s"}},
        "handlers": {"console": {"formatter": "plain"}},
        "root": {"handlers": ["console"]},
    }
    configure_logging(with_block(block) if form == "layout" else Settings(), json=form == "json")
    value = ATTACKS[attack]
    structlog.get_logger().info("turn.done", value=value, nested={value: [value]}, **{value: 1})
    structlog.get_logger().info(value)
    logging.getLogger("library").warning("%s", value)
    assert len(stdout.lines) == 3
    for line in stdout.lines:
        assert not UNSAFE.search(line)
        assert line.encode()
        if form == "json":
            assert json.loads(line)["level"] in ("info", "warning")


@pytest.mark.parametrize("form", ["json", "readable"])
def test_a_traceback_is_part_of_its_record(form: str, stdout: Terminal) -> None:
    configure_logging(Settings(), json=form == "json")
    try:
        raise ValueError("first\n2026-01-01 [info] forged.record\x1b[2J")
    except ValueError:
        structlog.get_logger().exception("turn.failed")
        logging.getLogger("library").exception("broken")
    assert not UNSAFE.search("".join(stdout.lines))
    if form == "json":
        assert [record["event"] for record in stdout.records] == ["turn.failed", "broken"]
        assert all("ValueError: first" in record["exception"] for record in stdout.records)
    else:
        records = [line for line in stdout.lines if not line.startswith("    | ")]
        assert len(records) == 2
        assert any(line.startswith("    | 2026-01-01 [info] forged.record") for line in stdout.lines)


@given(st.text(alphabet=st.characters(codec=None)))
def test_escaped_text_is_one_line_that_can_be_encoded_and_is_right_inside_json(text: str) -> None:
    assert not UNSAFE.search(escape(text))
    assert len(escape(text).encode()) >= len(text)
    assert json.loads(escape(json.dumps(text, ensure_ascii=False))) == text


def test_secrets_are_redacted_by_the_name_of_their_field_and_counts_are_not(stdout: Terminal) -> None:
    configure_logging(Settings())
    secrets = ("api_key", "API-Key", "token", "session_token", "authorization", "client_secret", "password", "cookie")
    structlog.get_logger().info(
        "request.received",
        **dict.fromkeys(secrets, "canary"),
        headers={"Authorization": "Bearer canary", "x-api-key": b"canary", "accept": "*/*"},
        items=[{"token": "canary"}],
        max_tokens=160,
        first_token=0.25,
        keyboard="qwerty",
    )
    record = stdout.records[0]
    assert "canary" not in stdout.getvalue()
    assert all(record[name] == "[redacted]" for name in secrets)
    assert record["headers"] == {"Authorization": "[redacted]", "x-api-key": "[redacted]", "accept": "*/*"}
    assert (record["max_tokens"], record["first_token"], record["keyboard"]) == (160, 0.25, "qwerty")


def test_what_json_cannot_hold_is_written_in_words(stdout: Terminal) -> None:
    configure_logging(Settings())
    loop: list[Any] = []
    loop.append(loop)
    structlog.get_logger().info("a.b", nan=float("nan"), audio=b"\x00\x01", path=Path("x"), loop=loop, none=None)
    record = stdout.records[0]
    assert (record["nan"], record["audio"], record["path"], record["none"]) == ("nan", "<2 bytes>", "x", None)


async def test_the_session_is_on_every_record_of_its_tasks(stdout: Terminal) -> None:
    configure_logging(Settings())
    bind_session("s-1")
    structlog.get_logger().info("a.b")
    logging.getLogger("library").warning("c")
    assert [record["session_id"] for record in stdout.records] == ["s-1", "s-1"]


def test_the_block_of_the_guide_acts(tmp_path: Path, stdout: Terminal) -> None:
    configure_logging(with_block(guide_block(tmp_path)))
    log = structlog.get_logger("deep")
    log.debug("a.debug", n=1)
    log.info("a.info", text="two words")
    log.error("an.error")
    logging.getLogger("uvicorn.error").error("from uvicorn")
    release_logging()
    application = text_of(tmp_path / "logs/application.log").splitlines()
    pattern = r"[\d-]+ [\d:,]+ \[DEBUG\] voicepod\.deep:\d+: a\.debug n=1"
    assert re.fullmatch(pattern, application[0])
    assert application[1].endswith('a.info text="two words"')
    assert len(application) == 4
    errors = text_of(tmp_path / "logs/error.log").splitlines()
    assert [line.rpartition(": ")[2] for line in errors] == ["an.error", "from uvicorn"]
    # The console takes INFO and above, in the layout that the guide calls standard, each record once.
    assert [line.rpartition(": ")[2] for line in stdout.lines] == [
        'a.info text="two words"',
        "an.error",
        "from uvicorn",
    ]
    assert re.match(r"[\d-]+ [\d:,]+ \[INFO\] voicepod\.deep: ", stdout.lines[0])


def test_a_handler_without_a_layout_writes_json_and_so_does_the_layout_called_json(
    tmp_path: Path, stdout: Terminal
) -> None:
    file = {"class": "logging.handlers.RotatingFileHandler"}
    block = {
        "formatters": {"lines": {"format": "json"}},
        "handlers": {
            "plain": file | {"filename": str(tmp_path / "plain.log")},
            "named": file | {"filename": str(tmp_path / "named.log"), "formatter": "lines"},
        },
        "root": {"level": "INFO", "handlers": ["plain", "named"]},
    }
    configure_logging(with_block(block), json=False)
    structlog.get_logger().info("a.b", n=1)
    release_logging()
    for name in ("plain.log", "named.log"):
        assert json.loads(text_of(tmp_path / name))["n"] == 1
    assert stdout.lines == []


def test_a_block_without_handlers_still_logs_to_stdout(stdout: Terminal) -> None:
    configure_logging(with_block({"loggers": {"fireredtts2.deep": {"level": "WARNING"}}}))
    structlog.get_logger("deep").info("a.quiet")
    structlog.get_logger("deep").warning("a.loud")
    assert [record["event"] for record in stdout.records] == ["a.loud"]


def test_files_are_rotated_by_size(tmp_path: Path, stdout: Terminal) -> None:
    block = guide_block(tmp_path)
    block["handlers"]["file"] |= {"maxBytes": 2000, "backupCount": 2}
    configure_logging(with_block(block))
    for n in range(200):
        structlog.get_logger().debug("a.b", n=n)
    release_logging()
    files = sorted(path.name for path in (tmp_path / "logs").glob("application.log*"))
    assert files == ["application.log", "application.log.1", "application.log.2"]
    assert all((tmp_path / "logs" / name).stat().st_size <= 2000 for name in files)
    assert stdout.lines == []


def test_an_output_that_takes_no_more_records_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk, a closed pipe: each record would else put a traceback on stderr, and in it fields uncleaned."""
    with full_disk() as full:
        monkeypatch.setattr("sys.stdout", full)
        configure_logging(Settings(), json=True)
        for _ in range(3):
            structlog.get_logger().info("test.happened", api_key="secret")
        release_logging()
    assert capfd.readouterr().err == "voicepod: log records are lost: No space left on device\n"


def test_a_server_out_of_file_descriptors_does_not_fill_the_disk_with_words_about_it(stdout: Terminal) -> None:
    configure_logging(Settings())
    error = OSError(24, "Too many open files")
    for _ in range(3):  # as asyncio says it
        words = "socket.accept() out of system resource\nsocket: <socket>"
        logging.getLogger("asyncio").error(words, exc_info=(OSError, error, None))
    logging.getLogger("asyncio").error("something else")
    first, second = stdout.records
    assert first["event"] == "no connection can be accepted: [Errno 24] Too many open files"
    assert "exception" not in first
    assert second["event"] == "something else"


def test_words_for_a_terminal_that_is_gone_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk() as full:
        monkeypatch.setattr("sys.stdout", full)
        say("Open the page.")


def test_streams_that_were_closed_at_the_start_are_nowhere(tmp_path: Path) -> None:
    """The next file to be opened, such as the database, would else have the number of stdout or stderr."""
    code = """if True:
        import os
        from logs import open_missing_streams, say
        open_missing_streams()
        say("words")
        with open("opened", "w") as file:
            file.write(str(file.fileno()))
    """
    command = f"exec '{sys.executable}' -c '{code.replace(chr(39), chr(34))}' <&- >&- 2>&-"
    ended = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0
    assert int((tmp_path / "opened").read_text()) > 2


def test_a_log_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a directory is wanted")
    with pytest.raises(ConfigError, match=r"logs/application\.log cannot be written"):
        configure_logging(with_block(guide_block(tmp_path)))


def test_disable_existing_loggers_acts(tmp_path: Path, stdout: Terminal) -> None:
    logging.getLogger("library")
    configure_logging(with_block(guide_block(tmp_path) | {"disable_existing_loggers": True}))
    logging.getLogger("library").error("silenced")
    structlog.get_logger("deep").error("a.b")
    assert len(stdout.lines) == 1


def test_configuring_twice_does_not_double_records(tmp_path: Path, stdout: Terminal) -> None:
    for _ in range(2):
        configure_logging(with_block(guide_block(tmp_path)))
    configure_logging(Settings())
    configure_logging(Settings())
    structlog.get_logger().info("a.b")
    assert len(stdout.lines) == 1


@pytest.mark.parametrize(
    "block",
    [
        {"formatters": {"x": {"format": "%(nothing)s"}}},
        {"formatters": {"x": {"format": "no field"}}},
        {"formatters": {"x": {"format": "%(message)s %"}}},
        {"handlers": {"x": {"class": "logging.FileHandler"}}},
        {"handlers": {"x": {"class": "logging.StreamHandler", "filename": "f"}}},
        {"handlers": {"x": {"class": "logging.handlers.RotatingFileHandler"}}},
        {"handlers": {"x": {"formatter": "missing"}}},
        {"loggers": {"x": {"handlers": ["missing"]}}},
        {"handlers": {"x": {"()": "os.system"}}},
        {"version": 2},
    ],
)
def test_a_block_that_cannot_act_is_refused(block: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        LoggingSettings.model_validate(block)


def _log_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls of the levels on every name that the module binds to structlog.get_logger()."""
    names = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "get_logger" in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in names
            and node.func.attr in {"debug", "info", "warning", "error", "exception", "critical"}
        ):
            yield node


def test_event_names_are_static_and_dotted() -> None:
    folders = ("pipeline", "api", "ui", "scripts")
    for path in [*ROOT.glob("*.py"), *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]:
        for call in _log_calls(ast.parse(text_of(path))):
            event = call.args[0] if call.args else None
            place = f"{path.relative_to(ROOT)}:{call.lineno}"
            assert isinstance(event, ast.Constant), f"{place}: the event name is no constant"
            assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", str(event.value)), f"{place}: {event.value!r}"
            assert len(call.args) == 1, f"{place}: values go into fields"
