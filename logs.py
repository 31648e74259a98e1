"""Logging: structlog in front, the standard library's handlers behind, one record = one line.

`log = structlog.get_logger()` at the top of a module, then `log.info("turn.done", ttfa_ms=412)`: a static dotted event
name, values as fields. No transcript, audio, key or user file name at INFO or above. Records of every module end up
below the logger `voicepod`; uvicorn's go through the same handlers, so it must be started with `log_config=None`.
"""

from __future__ import annotations

import contextlib
import json as json_module
import logging
import logging.handlers
import math
import os
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from pipeline.errors import ConfigError
from settings import HandlerSettings, LoggerSettings, LoggingSettings, Settings

OWN_LOGGER: Final = "voicepod"
SELDOM_S: Final = 60.0
GUIDE_LOGGER: Final = "fireredtts2"  # what the admin guide calls it
REDACTED: Final = "[redacted]"
_HANDLER_PREFIX: Final = "voicepod:"  # tells our handlers from those of a test runner
_UVICORN: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")

# What could end a line, move a cursor, reorder text or fail to encode: C0 and C1 controls, DEL, line and paragraph
# separators, bidirectional marks, lone surrogates. Written as JSON escapes, which are right inside JSON too.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRET_NAME: Final = re.compile(
    r"(^|_)(api_?key|key|token|tokens|secret|password|passphrase|authorization|cookie|credentials?|ticket)(_id)?$"
)
# Session tickets may travel in a query string; the path is all that a log needs.
_QUERY: Final = re.compile(r"(/[^\s\"?]*)\?[^\s\"]*")
_MAX_DEPTH: Final = 8


def configure_logging(settings: Settings, *, json: bool | None = None) -> None:
    """Sends every record where the settings say; may be called again, which closes what the last call opened.

    Without a `logging` block everything goes to stdout: as JSON when `json` is true, readable when it is false, and by
    default JSON unless stdout is a terminal outside a container. `system.log_level` is the level of our own records;
    libraries start at WARNING, uvicorn at INFO, its access log only at DEBUG. ConfigError names a log file that
    cannot be written.
    """
    release_logging()
    as_json = json if json is not None else not sys.stdout.isatty() or _in_container()
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_ENRICH, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=_LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    for name in _UVICORN:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("asyncio").addFilter(_NoDescriptors())
    level = settings.system.log_level
    verbose = level == "DEBUG"
    logging.getLogger(OWN_LOGGER).setLevel(level)
    logging.getLogger(OWN_LOGGER).propagate = True
    # Not DEBUG: there uvicorn writes out every WebSocket frame, which is what people said.
    logging.getLogger("uvicorn").setLevel("INFO" if verbose else level)
    for name in ("uvicorn.error", "uvicorn.asgi"):  # an embedded server may have set levels of its own
        logging.getLogger(name).setLevel("NOTSET")
    logging.getLogger("uvicorn.access").setLevel("INFO" if verbose else "WARNING")
    logging.getLogger().setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    if settings.logging is None:
        logging.getLogger().addHandler(_named(_console(as_json), "stdout"))
    else:
        _apply_block(settings.logging, as_json)


def release_logging() -> None:
    """Takes our handlers off all loggers and closes their files."""
    asyncio_log = logging.getLogger("asyncio")
    asyncio_log.filters = [kept for kept in asyncio_log.filters if not isinstance(kept, _NoDescriptors)]
    ours = set()
    for logger in [logging.getLogger(), *_existing_loggers().values()]:
        for handler in list(logger.handlers):
            if (handler.name or "").startswith(_HANDLER_PREFIX):
                logger.removeHandler(handler)
                ours.add(handler)
    for handler in ours:
        handler.close()


def say(words: str) -> None:
    """Words for whoever started the program; a terminal that takes none keeps nothing from going on."""
    with contextlib.suppress(OSError):
        print(words, flush=True)


def open_missing_streams() -> None:
    """Standard streams that were closed at the start lead nowhere: the next file opened must not be one of them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open as long as the process


def bind_session(session_id: str) -> None:
    """Puts `session_id` on every record of the current task and of the tasks it starts."""
    structlog.contextvars.bind_contextvars(session_id=session_id)


def _apply_block(block: LoggingSettings, as_json: bool) -> None:
    """Makes the admin guide's logging block act."""
    handlers = {name: _handler(name, handler, block, as_json) for name, handler in block.handlers.items()}
    loggers = {_own_name(name): logger for name, logger in block.loggers.items()}
    if block.disable_existing_loggers:
        for name, logger in _existing_loggers().items():
            logger.disabled = not any(name == kept or name.startswith(f"{kept}.") for kept in loggers)
    for name, wanted in loggers.items():
        logger = logging.getLogger(name)
        logger.setLevel(wanted.level)
        logger.propagate = wanted.propagate
        for handler in wanted.handlers:
            logger.addHandler(handlers[handler])
    # The guide names handlers for its own logger only. Without this, records of uvicorn and of libraries would be
    # printed raw to stderr by the standard library's last resort.
    root = block.root or LoggerSettings(
        level="WARNING", handlers=loggers[OWN_LOGGER].handlers if OWN_LOGGER in loggers else tuple(handlers)
    )
    logging.getLogger().setLevel(root.level)
    for handler in root.handlers:
        logging.getLogger().addHandler(handlers[handler])
    if not root.handlers:
        logging.getLogger().addHandler(_named(_console(as_json), "stdout"))


def _handler(name: str, wanted: HandlerSettings, block: LoggingSettings, as_json: bool) -> logging.Handler:
    handler: logging.Handler
    if wanted.filename is None:
        handler = _console(as_json)
    else:
        handler = _rotating_file(wanted.filename, wanted)
        handler.setFormatter(_json_formatter())
    if wanted.formatter is not None:
        layout = block.formatters[wanted.formatter]
        handler.setFormatter(
            _json_formatter() if layout.format == "json" else _text_formatter(layout.format, layout.datefmt)
        )
    handler.setLevel(wanted.level)
    return _named(handler, name)


def _rotating_file(path: Path, wanted: HandlerSettings) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _RotatingFile(path, maxBytes=wanted.max_bytes, backupCount=wanted.backup_count, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the log file {path} cannot be written: {error.strerror}") from None


def _console(as_json: bool) -> logging.Handler:
    handler = _Stream(sys.stdout)
    handler.setFormatter(_json_formatter() if as_json else _readable_formatter(colors=sys.stdout.isatty()))
    return handler


def _named(handler: logging.Handler, name: str) -> logging.Handler:
    handler.set_name(_HANDLER_PREFIX + name)
    return handler


def _own_name(name: str) -> str:
    """The guide's logger names below ours; other names stay."""
    if name == GUIDE_LOGGER or name.startswith(f"{GUIDE_LOGGER}."):
        return OWN_LOGGER + name.removeprefix(GUIDE_LOGGER)
    return name


def _existing_loggers() -> dict[str, logging.Logger]:
    known = logging.root.manager.loggerDict
    return {name: logger for name, logger in known.items() if isinstance(logger, logging.Logger)}


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


class _LoggerFactory:
    """Names a logger after the module that asked for it, below `voicepod`."""

    def __init__(self) -> None:
        self._by_module = structlog.stdlib.LoggerFactory(ignore_frame_names=["logs"])

    def __call__(self, *args: Any) -> logging.Logger:
        name = self._by_module(*args).name
        inside = name == OWN_LOGGER or name.startswith(f"{OWN_LOGGER}.")
        return logging.getLogger(name if inside else f"{OWN_LOGGER}.{name}")


class _Failing(logging.Handler):
    """An output that may fail (a full disk, a closed pipe) is told of once: each record would give a traceback."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            with contextlib.suppress(OSError):
                print(f"voicepod: log records are lost: {error.strerror}", file=sys.stderr, flush=True)


class Seldom:
    """Lets one pass each `SELDOM_S`: of what may happen thousands of times a second."""

    _next_s = float("-inf")

    def passes(self) -> bool:
        """Whether it is time for one."""
        now_s = time.monotonic()
        is_due = now_s >= self._next_s
        if is_due:
            self._next_s = now_s + SELDOM_S
        return is_due


class _NoDescriptors(logging.Filter):
    """Out of file descriptors, asyncio says so two thousand times a second, each with a traceback: a minute will do."""

    def __init__(self) -> None:
        super().__init__()
        self._seldom = Seldom()

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("socket.accept() out of system resource"):
            return True
        if not self._seldom.passes():
            return False
        reason = record.exc_info[1] if record.exc_info else None
        record.msg, record.exc_info = f"no connection can be accepted: {reason}", None
        return True


class _Stream(_Failing, logging.StreamHandler[TextIO]):
    pass


class _RotatingFile(_Failing, logging.handlers.RotatingFileHandler):
    pass


class _OneLine(structlog.stdlib.ProcessorFormatter):
    """A formatter whose records cannot hold a second line, whoever wrote the values."""

    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))


def escape(text: str) -> str:
    r"""`text` with everything that could forge or disturb a line written as `\uXXXX`."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _json_formatter() -> logging.Formatter:
    def render(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> str:
        return json_module.dumps(event, ensure_ascii=False, allow_nan=False, default=str)

    return _OneLine(foreign_pre_chain=_ENRICH, processors=[*_FINISH, render])


def _text_formatter(layout: str, datefmt: str | None) -> logging.Formatter:
    def render(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> str:
        # The layout has its own fields for these.
        fields = {key: value for key, value in event.items() if key not in ("event", "level", "logger", "timestamp")}
        return " ".join([str(event["event"]), *(f"{key}={_field(value)}" for key, value in fields.items())])

    return _OneLine(fmt=layout, datefmt=datefmt, foreign_pre_chain=_ENRICH, processors=[*_FINISH, render])


def _field(value: object) -> str:
    text = value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False, default=str)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json_module.dumps(text, ensure_ascii=False)


def _readable_formatter(*, colors: bool) -> logging.Formatter:
    """For people at a terminal: colours, and tracebacks on lines of their own that a margin marks."""

    def escape_values(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        traceback = str(event.pop("exception", ""))
        safe: dict[str, Any] = {escape(key): _escaped(value) for key, value in event.items()}
        if traceback:
            safe["exception"] = "\n".join(f"    | {escape(line)}" for line in traceback.splitlines())
        return safe

    console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_ENRICH, processors=[*_FINISH, escape_values, console])


def _escaped(value: object) -> object:
    return value if isinstance(value, int | float) or value is None else escape(str(value))


def _clean_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {str(key): _clean(str(key), value) for key, value in event.items()}


def _clean(name: str, value: Any, depth: int = 0) -> Any:
    """A field's value without secrets and without what JSON cannot hold.

    A number under a secret's name is a count (`max_tokens`) or a time (`first_token_ms`), never a secret.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if _SECRET_NAME.search(name.lower().replace("-", "_")):
        return REDACTED
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        return {str(key): _clean(str(key), entry, depth + 1) for key, entry in value.items()}
    if depth < _MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
        return [_clean("", entry, depth + 1) for entry in value]
    return str(value)


def _drop_queries(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Cuts query strings from uvicorn's records of requests."""
    if str(event.get("logger", "")).startswith("uvicorn"):
        event["event"] = _QUERY.sub(r"\1", str(event["event"]))
    return event


# Runs where the record is made (ours) or before it is formatted (the libraries').
_ENRICH: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _drop_queries,
]
# Runs in each handler, before the record becomes text.
_FINISH: Final[list[Processor]] = [
    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
    structlog.processors.format_exc_info,
    _clean_fields,
]
