"""The typed settings tree: one frozen value, read at start, handed to whoever needs it.

`settings_sources.load_settings` fills it from command line, environment, file and defaults; nothing else reads the
environment. A key with `later=` is accepted and checked now and acts with the part of the project it names; every
other key acts today. `docs/configuration.md` is generated from this file.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic.config import JsonDict

from pipeline.errors import ConfigError

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
OPERATIONS: Final = "operations"

# A name that may end up in a path, a log field or a manifest look-up.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_LANGUAGE = r"^(auto|[a-z]{2,3})$"
_DEVICE = r"^(auto|cpu|cuda(:\d{1,2})?)$"
_HOST = r"^[A-Za-z0-9.:_-]{1,253}$"
_URL = r"^https?://[^\s/]+[^\s]*$"
_REMOTE_MODEL = r"^[A-Za-z0-9/._][A-Za-z0-9._:/@+-]{0,254}$"
_IN_WORDS: Final = {
    _NAME: "a name of letters, digits and . _ -",
    _LANGUAGE: "auto or a language code such as en",
    _DEVICE: "auto, cpu, cuda or cuda:N",
    _HOST: "a host name or address",
    _URL: "an http or https URL",
    _REMOTE_MODEL: "a name of letters, digits and . _ : / @ + -",
}


def setting(default: Any, description: str, *, later: str | None = None, **constraints: Any) -> Any:
    """A pydantic field; `later` names the part of the project that makes the key act, None when it acts today."""
    extra: JsonDict = {"later": later} if later else {}
    if "pattern" in constraints:
        extra["takes"] = _IN_WORDS[constraints["pattern"]]
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=extra, **constraints)
    return Field(default, description=description, json_schema_extra=extra, validate_default=True, **constraints)


def _refuse_bool(value: object) -> object:
    """Pydantic would read `true` as 1; a number that was written as a truth value is a mistake."""
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


def _usable_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path without zero bytes")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError("a path whose ~user exists") from error


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _web_origin(origin: str) -> str:
    """`scheme://host[:port]`, as a browser sends it; a star would hand the microphone's session to any page."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError as error:
        raise ValueError("origins such as https://example.org:8443") from error
    plain = f"{parts.scheme}://{parts.hostname or ''}" + (f":{port}" if port else "")
    if parts.scheme not in ("http", "https") or not parts.hostname or origin.lower() != plain or "*" in origin:
        raise ValueError("origins such as https://example.org:8443, without path and without *")
    return plain


def _server_url(url: str) -> str:
    """Without the slash at its end. A user's name in it would show up in logs; a query would be lost with each path."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError("a URL such as http://127.0.0.1:8000/v1") from error
    if parts.scheme not in ("http", "https") or not has_host or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("a URL such as http://127.0.0.1:8000/v1, without user, password, query and fragment")
    return url.rstrip("/")


def _network_of_addresses(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError("addresses or networks such as 10.0.0.0/8") from error


def _engine_group(group: str) -> str:
    kinds = group.split("+")
    if not set(kinds) <= {"asr", "llm", "tts"} or len(set(kinds)) < len(kinds):
        raise ValueError("asr, llm, tts or several of them joined by +")
    return group


Count = Annotated[int, BeforeValidator(_refuse_bool)]
Number = Annotated[float, BeforeValidator(_refuse_bool)]
FilePath = Annotated[Path, AfterValidator(_usable_path)]
Origin = Annotated[str, AfterValidator(_web_origin)]
EngineGroup = Annotated[str, AfterValidator(_engine_group)]
Network = Annotated[str, AfterValidator(_network_of_addresses)]
ServerUrl = Annotated[str, AfterValidator(_server_url)]
EVICTABLE: Final = ("asr", "llm", "tts")  # the models that take much memory
Level = Annotated[LogLevel, BeforeValidator(_upper)]


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where everything that can be made again lives: `VOICEPOD_CACHE`, else `~/.cache/voicepod`."""
    return _directory(environ, "VOICEPOD_CACHE", "~/.cache/voicepod")


def data_directory(environ: Mapping[str, str]) -> Path:
    """Where everything that cannot be made again lives: `VOICEPOD_DATA`, else `~/.local/share/voicepod`."""
    return _directory(environ, "VOICEPOD_DATA", "~/.local/share/voicepod")


def _directory(environ: Mapping[str, str], variable: str, usual: str) -> Path:
    try:
        return Path(environ.get(variable) or usual).expanduser()
    except RuntimeError:
        raise ConfigError(f"this user has no home directory: set HOME or {variable}") from None


class Section(BaseModel):
    """A frozen group of settings; unknown keys and non-finite numbers are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, protected_namespaces=()
    )


class SystemSettings(Section):
    """The process as a whole."""

    gpu_device: str = setting("auto", "Device of engines set to auto: auto, cpu, cuda or cuda:N.", pattern=_DEVICE)
    max_concurrent_users: Count = setting(4, "Talks served at once; the next one is refused.", ge=1, le=1000)
    engine_processes: tuple[EngineGroup, ...] = setting(
        (), "Engines that run in processes of their own, such as asr+llm and tts; the others run in the server's."
    )
    max_loaded_models: Count = setting(
        8,
        "Models of ASR, LLM and TTS kept in memory at once; below three each turn loads them anew.",
        ge=1,
        le=64,
    )
    enable_monitoring: bool = setting(True, "Serve /metrics and the live figures of the page.")
    log_level: Level = setting("INFO", "Lowest level that is logged.")

    @model_validator(mode="after")
    def _in_one_process_each(self) -> SystemSettings:
        kinds = [kind for group in self.engine_processes for kind in group.split("+")]
        if len(set(kinds)) < len(kinds):
            raise ValueError("engine_processes names each engine once at most")
        if kinds and self.max_loaded_models < len(EVICTABLE):
            raise ValueError("max_loaded_models below three goes without engine_processes, which keep theirs loaded")
        return self


class ModelsSettings(Section):
    """Which models, and where they lie."""

    whisper_model: str = setting("base", "Size of the Whisper model (tiny.en, base, small, ...).", pattern=_NAME)
    tts_model_path: FilePath | None = setting(
        None, "Directory of a FireRedTTS-2 or F5-TTS model of your own; none is the one in models.dir."
    )
    llm_model: str = setting("local", "Manifest id of the LLM; local is the profile's own.", pattern=_NAME)
    model_precision: Literal["fp32", "fp16", "bf16"] = setting("fp16", "Number format of FireRedTTS-2 on a GPU.")
    dir: FilePath = setting(lambda: cache_directory(os.environ) / "models", "Directory of downloaded models.")
    offline: bool = setting(False, "scripts.download_models asks nobody; a missing model stops the start either way.")


class AudioSettings(Section):
    """Audio that leaves as files."""

    sample_rate: Literal[8000, 16000, 22050, 24000, 44100, 48000] = setting(24000, "Rate of files, in Hz.")
    channels: Literal[1] = setting(1, "Channels of files; speech is mono.")
    format: Literal["wav", "flac"] = setting("wav", "Container of files.")


class NetworkSettings(Section):
    """The door: where it listens, who may knock, and the clocks of a connection."""

    host: str = setting(
        "127.0.0.1", "Address to listen on; not set, it is 0.0.0.0 where access.mode is keys.", pattern=_HOST
    )
    port: Count = setting(7860, "TCP port to listen on; 0 takes a free one.", ge=0, le=65535)
    websocket_enabled: bool = setting(True, "Serve the realtime WebSocket; without it the page asks by HTTP.")
    cors_enabled: bool = setting(False, "Let pages of allowed_origins use this server.")
    allowed_origins: tuple[Origin, ...] = setting((), "Foreign origins that cors_enabled lets in.")
    tls_cert: FilePath | None = setting(None, "PEM certificate chain; with tls_key the server speaks HTTPS.")
    tls_key: FilePath | None = setting(None, "PEM private key of tls_cert.")
    max_frame_bytes: Count = setting(
        4_194_304, "Largest WebSocket message, in bytes; a minute of base64 audio fits.", ge=65_536, le=16_777_216
    )
    session_resume_s: Number = setting(300.0, "Seconds a talk survives without a connection.", ge=0, le=86_400)
    seat_hold_s: Number = setting(30.0, "Seconds a lost connection keeps its seat.", ge=0, le=3600)
    ping_interval_s: Number = setting(20.0, "Seconds between pings.", ge=1, le=600)
    ping_timeout_s: Number = setting(20.0, "Seconds without a pong until the socket is closed.", ge=1, le=600)
    send_timeout_s: Number = setting(5.0, "Seconds a send may block until the socket is closed.", ge=0.1, le=120)
    max_lead_s: Number = setting(1.0, "Seconds of audio sent ahead of the played position.", ge=0.1, le=10)
    max_sockets: Count = setting(100, "Open WebSockets; the next one is refused.", ge=1, le=10_000)
    max_sockets_per_owner: Count = setting(
        50, "Open WebSockets of one owner, who must not take them all.", ge=1, le=10_000
    )
    shutdown_grace_s: Number = setting(5.0, "Seconds running turns have to end at shutdown.", ge=0, le=300)

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are set together or not at all")
        if self.seat_hold_s > self.session_resume_s:
            raise ValueError("seat_hold_s is at most session_resume_s: a seat without its talk serves nobody")
        return self


class SecuritySettings(Section):
    """Limits on what a caller may ask for."""

    rate_limiting: bool = setting(True, "Limit requests per caller; cannot be switched off on a RunPod pod.")
    max_requests_per_minute: Count = setting(
        60, "API requests that one key or browser may make in a minute.", ge=1, le=1_000_000
    )
    max_upload_size_mb: Number = setting(50.0, "Largest file that is taken, in MB (10^6 bytes).", gt=0, le=2048)


class AccessSettings(Section):
    """Who may use the server."""

    mode: Literal["keys", "open"] = setting(
        "keys", "keys: everyone needs an API key or a login. open: whoever reaches the port may use everything."
    )
    force_open: bool = setting(False, "Let mode open act on a RunPod pod, whose address is public.")
    # The admin guide says 24 hours. A cookie that a page keeps for a day is worth a day's GPU to whoever finds the
    # browser open; a working day with a pause is what people need, and `login-link` is one command.
    session_idle_s: Number = setting(
        1800.0, "Seconds until a browser that does nothing is logged out; an open talk counts as use.", ge=10, le=86_400
    )
    session_life_s: Number = setting(
        43_200.0, "Seconds after which a browser must log in again, used or not.", ge=10, le=2_592_000
    )
    trusted_hops: Count = setting(0, "Proxies in front that add to X-Forwarded-For; 0 trusts none.", ge=0, le=8)
    trusted_proxies: tuple[Network, ...] = setting((), "Addresses of proxies whose forwarded headers are believed.")
    public_url: str | None = setting(None, "URL of the page as browsers see it, for login links.", pattern=_URL)

    @model_validator(mode="after")
    def _ordered(self) -> AccessSettings:
        if self.session_idle_s > self.session_life_s:
            raise ValueError("session_idle_s is at most session_life_s")
        return self


class PerformanceSettings(Section):
    """Trade-offs of speed against memory."""

    enable_caching: bool = setting(True, "Keep audio of text that is spoken again.", later=OPERATIONS)
    preload_models: bool = setting(True, "Load every engine at start, not when a page or a socket asks.")
    optimize_for_latency: bool = setting(
        True,
        "An early answer; false waits longer for the end of a question and speaks longer first pieces.",
    )
    gpu_memory_fraction: Number = setting(
        0.9, "Share of the GPU's memory that all engines together may take.", gt=0, le=1
    )


class FormatterSettings(Section):
    """A text layout of log lines."""

    format: str = setting("%(message)s", "printf-style layout, or json for one JSON object a line.")
    datefmt: str | None = setting(None, "strftime layout of %(asctime)s.")

    @model_validator(mode="after")
    def _renders(self) -> FormatterSettings:
        if self.format != "json":
            record = logging.LogRecord("voicepod", logging.INFO, "f", 1, "m", None, None)
            try:
                logging.Formatter(self.format, self.datefmt, validate=True).format(record)
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                raise ValueError("json, or a layout of %(name)s fields of a log record") from error
        return self


class HandlerSettings(Section):
    """Where log lines go: the terminal (stdout) or a file that is rotated by size."""

    class_: Literal["logging.StreamHandler", "logging.handlers.RotatingFileHandler"] = setting(
        "logging.StreamHandler", "Kind of handler.", alias="class"
    )
    level: Level = setting("DEBUG", "Lowest level that this handler writes.")
    formatter: str | None = setting(None, "Key of a formatter; none takes JSON or the readable form.")
    filename: FilePath | None = setting(None, "File of a RotatingFileHandler; its directory is made.")
    max_bytes: Count = setting(10_485_760, "Size of a file until it is rotated.", alias="maxBytes", ge=0)
    backup_count: Count = setting(5, "Rotated files that are kept.", alias="backupCount", ge=0, le=1000)

    @model_validator(mode="after")
    def _consistent(self) -> HandlerSettings:
        if (self.filename is not None) != (self.class_ == "logging.handlers.RotatingFileHandler"):
            raise ValueError("filename belongs to a RotatingFileHandler, which needs one")
        return self


class LoggerSettings(Section):
    """Level and handlers of one logger."""

    level: Level = setting("INFO", "Lowest level that this logger takes.")
    handlers: tuple[str, ...] = setting((), "Keys of the handlers it writes to.")
    propagate: bool = setting(True, "Pass records to the loggers above as well.")


class LoggingSettings(Section):
    """The admin guide's logging block: the part of logging.config.dictConfig that names no code."""

    version: Literal[1] = setting(1, "Version of the layout.")
    disable_existing_loggers: bool = setting(False, "Silence loggers that the block does not name.")
    formatters: dict[str, FormatterSettings] = setting(dict, "Layouts by name.")
    handlers: dict[str, HandlerSettings] = setting(dict, "Handlers by name.")
    loggers: dict[str, LoggerSettings] = setting(dict, "Loggers by name; fireredtts2 stands for voicepod.")
    root: LoggerSettings | None = setting(None, "The logger above all others.")

    @model_validator(mode="after")
    def _names_exist(self) -> LoggingSettings:
        for name, handler in self.handlers.items():
            if handler.formatter is not None and handler.formatter not in self.formatters:
                raise ValueError(f"handler {name!r} names a formatter that formatters holds")
        for name, logger in [*self.loggers.items(), ("root", self.root or LoggerSettings())]:
            if not set(logger.handlers) <= set(self.handlers):
                raise ValueError(f"logger {name!r} names handlers that handlers holds")
        return self


class ModelOptimizationSettings(Section):
    """The admin guide's keys of models; bits choose asr.compute_type and llm.bits where those are not set."""

    enable_quantization: bool = setting(
        True, "Quantise the ASR model and the LLM; false takes them as they are stored."
    )
    quantization_bits: Literal[4, 8, 16] = setting(
        8, "Bits of a quantised weight: 16, 8, or 4, which is 8 for the ASR model."
    )
    dynamic_batching: bool = setting(
        True, "Talks share the steps of the LLM (engine transformers), which come and go between two steps."
    )


class ScalingSettings(Section):
    """Care for the processes that engines run in."""

    worker_timeout: Number = setting(
        30.0, "Seconds without a sign of life until an engine process is replaced.", ge=1, le=3600
    )
    step_timeout_s: Number = setting(
        10.0, "Seconds until a cancelled step counts as hanging and its process is replaced.", ge=0.1, le=600
    )
    load_timeout_s: Number = setting(900.0, "Seconds that an engine process may load its weights.", ge=1, le=7200)
    restart_wait_s: Number = setting(
        5.0, "Seconds that a turn waits for an engine process that is being replaced.", ge=0, le=120
    )
    enable_worker_recycling: bool = setting(True, "Replace an engine process that keeps growing.")
    max_wait_s: Number = setting(
        10.0, "Seconds that turns may wait for engines on average until no new talk begins.", ge=0.1, le=120
    )


class VadSettings(Section):
    """When a sound counts as speech."""

    engine: str = setting("silero", "Voice activity detector: silero or webrtc.", pattern=_NAME)
    threshold: Number = setting(0.5, "Speech probability from which a frame is speech.", gt=0, lt=1)
    min_speech_ms: Count = setting(120, "Speech that opens an utterance, in ms.", ge=0, le=2000)
    prefix_ms: Count = setting(300, "Audio kept from before the opening, in ms.", ge=0, le=2000)
    speaking_threshold: Number = setting(0.75, "Speech probability asked for while the assistant speaks.", gt=0, lt=1)
    speaking_min_speech_ms: Count = setting(250, "Speech that interrupts the assistant, in ms.", ge=0, le=5000)

    @model_validator(mode="after")
    def _stricter_while_speaking(self) -> VadSettings:
        if self.speaking_threshold < self.threshold:
            raise ValueError("speaking_threshold is at least threshold")
        if self.speaking_min_speech_ms < self.min_speech_ms:
            raise ValueError("speaking_min_speech_ms is at least min_speech_ms")
        return self


class TurnSettings(Section):
    """The clocks of a turn."""

    end_wait_ms: Count = setting(600, "Silence that ends an utterance (patience), in ms.", ge=100, le=5000)
    min_utterance_ms: Count = setting(150, "Shorter utterances are ignored, in ms.", ge=0, le=5000)
    max_utterance_s: Number = setting(60.0, "Longer utterances are cut, in seconds.", ge=1, le=600)
    echo_guard: bool = setting(True, "Ask more of speech while the assistant speaks, and take its own echo for none.")
    asr_timeout_s: Number = setting(30.0, "Seconds a transcription may take.", gt=0, le=600)
    first_token_timeout_s: Number = setting(30.0, "Seconds until the LLM's first token.", gt=0, le=600)
    token_timeout_s: Number = setting(15.0, "Seconds between two tokens.", gt=0, le=600)
    first_audio_timeout_s: Number = setting(30.0, "Seconds from a piece to its first audio.", gt=0, le=600)
    audio_timeout_s: Number = setting(30.0, "Seconds between two audio chunks of a piece.", gt=0, le=600)
    first_clause_min_chars: Count = setting(12, "Shortest first piece that is spoken alone.", ge=1, le=200)
    piece_max_chars: Count = setting(200, "Longest piece handed to the TTS, in characters.", ge=20, le=2000)
    max_pending_audio_s: Number = setting(30.0, "Seconds of audio that may wait for a client.", ge=1, le=600)
    replay_s: Number = setting(30.0, "Seconds of unheard audio a resumed talk gets again.", ge=0, le=600)

    @model_validator(mode="after")
    def _consistent(self) -> TurnSettings:
        if self.first_clause_min_chars > self.piece_max_chars:
            raise ValueError("first_clause_min_chars is at most piece_max_chars")
        if self.min_utterance_ms > self.max_utterance_s * 1000:
            raise ValueError("min_utterance_ms is at most max_utterance_s")
        return self


class AsrSettings(Section):
    """Speech to text."""

    engine: str = setting("faster_whisper", "Speech recogniser.", pattern=_NAME)
    language: str = setting("auto", "ISO 639-1 code of the speech, or auto.", pattern=_LANGUAGE)
    beam_size: Count = setting(1, "Hypotheses kept while decoding.", ge=1, le=10)
    threads: Count = setting(2, "CPU threads of the engine.", ge=1, le=256)
    compute_type: Literal["default", "auto", "int8", "int8_float16", "int16", "float16", "bfloat16", "float32"] = (
        setting("int8", "Number format of the weights; what the engine has not on its device becomes the nearest.")
    )
    device: str = setting("auto", "auto (system.gpu_device), cpu, cuda or cuda:N.", pattern=_DEVICE)
    light_model: str | None = setting(
        None,
        "Whisper size that hears on the CPU while the engines are pressed, such as base; null has none.",
        pattern=_NAME,
    )
    path: FilePath | None = setting(
        None, "Directory of a Whisper of your own, CTranslate2 or Hugging Face; null takes models.whisper_model."
    )


class LlmSettings(Section):
    """Text to reply."""

    engine: str = setting("llamacpp", "Language model engine: llamacpp, openai or transformers.", pattern=_NAME)
    system_prompt: str = setting(
        "You are a friendly voice assistant. Answer in one or two short sentences of plain spoken language, "
        "without lists and without markdown.",
        "Instruction that every talk begins with.",
        max_length=20_000,
    )
    max_tokens: Count = setting(160, "Longest reply, in tokens.", ge=1, le=4096)
    temperature: Number = setting(0.7, "Randomness of the choice of words; 0 takes the likeliest.", ge=0, le=2)
    context_tokens: Count = setting(4096, "Window of the model, in tokens.", ge=256, le=1_048_576)
    threads: Count = setting(2, "CPU threads of the engine; 1 where other programs keep the cores busy.", ge=1, le=256)
    history_tokens: Count = setting(2048, "Newest history that is handed over, in tokens.", ge=64, le=1_048_576)
    path: FilePath | None = setting(
        None, "Directory of a chat model of your own, Hugging Face layout, safetensors; null takes models.llm_model."
    )
    device: str = setting("auto", "auto (system.gpu_device), cpu, cuda or cuda:N; for transformers.", pattern=_DEVICE)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto", "Number format of transformers; auto is bf16 on a card that has it, else fp16, and fp32 on a CPU."
    )
    bits: Literal[16, 8, 4] = setting(16, "Bits of a stored weight of transformers; 8 and 4 save memory.")
    base_url: ServerUrl | None = setting(
        None, "URL of a chat server for the engine openai, such as http://127.0.0.1:8000/v1.", pattern=_URL
    )
    api_key: SecretStr | None = setting(None, "Key of that server.", max_length=4096)
    remote_model: str | None = setting(
        None, "Model that server runs; none takes the only one that it has.", pattern=_REMOTE_MODEL
    )
    retries: Count = setting(2, "Times a request that found no chat server, or a busy one, is made anew.", ge=0, le=5)

    @model_validator(mode="after")
    def _fits(self) -> LlmSettings:
        if self.history_tokens + self.max_tokens > self.context_tokens:
            raise ValueError("history_tokens and max_tokens together fit into context_tokens")
        return self


class TtsSettings(Section):
    """Reply to speech."""

    engine: str = setting(
        "kokoro", "Speech synthesiser: kokoro, piper, firered, firered_upstream or f5.", pattern=_NAME
    )
    voice: str = setting("af_heart", "Voice of the engine.", pattern=_NAME)
    speed: Number = setting(1.0, "Speaking rate; 1 is the voice's own.", ge=0.5, le=2)
    threads: Count = setting(2, "CPU threads of the engine.", ge=1, le=256)


class VoicesSettings(Section):
    """The operator's voices, and those that users make."""

    dir: FilePath = setting(
        lambda: cache_directory(os.environ) / "voices", "Directory of the operator's voices, one .voice file each."
    )
    max_voices: Count = setting(20, "Voices an owner may keep; 0 lets nobody make one.", ge=0, le=10_000)
    watermark: Literal["cloned", "all", "off"] = setting(
        "cloned", "Speech that gets the inaudible mark: that of cloned voices, all, or none (off)."
    )
    # More adds little to the likeness, and a cloning engine takes a minute at the most.
    min_reference_s: Number = setting(3.0, "Shortest reference recording, in seconds.", gt=0, le=60)
    max_reference_s: Number = setting(30.0, "Longest reference recording, in seconds.", gt=0, le=60)
    phrase_required: bool = setting(False, "Ask for a phrase read aloud by the person whose voice it is.")
    # Claims for the misuse of a voice end after about three years in most of Europe.
    consent_days: Number = setting(1095.0, "Days that a consent is kept after its voice is deleted.", ge=0, le=36_500)

    @model_validator(mode="after")
    def _ordered(self) -> VoicesSettings:
        if self.min_reference_s > self.max_reference_s:
            raise ValueError("min_reference_s is at most max_reference_s")
        return self


class StorageSettings(Section):
    """What is kept in the server's own directory."""

    dir: FilePath = setting(
        lambda: data_directory(os.environ),
        "Directory of keys, logins, users' voices and the audit log, readable by its owner only.",
    )
    history_days: Count = setting(
        30, "Days that the times, outcomes and latencies of talks are kept; 0 keeps none.", ge=0, le=3650
    )
    words_days: Count = setting(
        0, "Days that the words of talks are kept with them; 0, for privacy, stores no word.", ge=0, le=3650
    )


class CacheSettings(Section):
    """Spoken audio that is kept."""

    dir: FilePath = setting(
        lambda: cache_directory(os.environ) / "audio", "Directory of cached audio, readable by its owner only."
    )
    max_mb: Number = setting(256.0, "Size of the audio cache, in MB (10^6 bytes).", later=OPERATIONS, ge=0)
    ttl_s: Number = setting(3600.0, "Seconds cached audio is kept.", later=OPERATIONS, ge=0)


class AlertsSettings(Section):
    """When an operator is told."""

    webhook_url: SecretStr | None = setting(None, "URL that alerts are posted to.", later=OPERATIONS)
    gpu_memory_percent: Number = setting(90.0, "Used GPU memory, in %.", later=OPERATIONS, gt=0, le=100)
    gpu_utilization_percent: Number = setting(95.0, "GPU utilisation, in %.", later=OPERATIONS, gt=0, le=100)
    cpu_percent: Number = setting(80.0, "CPU use, in %.", later=OPERATIONS, gt=0, le=100)
    memory_percent: Number = setting(85.0, "Used main memory, in %.", later=OPERATIONS, gt=0, le=100)
    disk_percent: Number = setting(90.0, "Used disk space, in %.", later=OPERATIONS, gt=0, le=100)
    response_ms: Number = setting(5000.0, "Time from speech to answer, in ms.", later=OPERATIONS, gt=0)


class MaintenanceSettings(Section):
    """What is thrown away, and when."""

    session_retention_days: Number = setting(7.0, "Days that stored talks are kept.", later=OPERATIONS, ge=0)
    temp_max_age_h: Number = setting(24.0, "Hours that temporary files are kept.", later=OPERATIONS, ge=0)


class BackupSettings(Section):
    """Copies of what cannot be made again."""

    repository: str | None = setting(None, "restic repository; none makes no backup.", later=OPERATIONS)
    interval_min: Number = setting(15.0, "Minutes between two backups.", later=OPERATIONS, ge=1)
    keep_days: Number = setting(30.0, "Days that backups are kept.", later=OPERATIONS, ge=1)


class Settings(Section):
    """Everything that can be configured."""

    system: SystemSettings = SystemSettings()
    models: ModelsSettings = Field(default_factory=ModelsSettings)
    audio: AudioSettings = AudioSettings()
    network: NetworkSettings = NetworkSettings()
    security: SecuritySettings = SecuritySettings()
    access: AccessSettings = AccessSettings()
    performance: PerformanceSettings = PerformanceSettings()
    logging: LoggingSettings | None = setting(None, "Loggers, handlers and layouts; none logs to stdout.")
    model_optimization: ModelOptimizationSettings = ModelOptimizationSettings()
    scaling_config: ScalingSettings = ScalingSettings()
    vad: VadSettings = VadSettings()
    turn: TurnSettings = TurnSettings()
    asr: AsrSettings = AsrSettings()
    llm: LlmSettings = LlmSettings()
    tts: TtsSettings = TtsSettings()
    voices: VoicesSettings = Field(default_factory=VoicesSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
    alerts: AlertsSettings = AlertsSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    backup: BackupSettings = BackupSettings()
