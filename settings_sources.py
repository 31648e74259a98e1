"""Where settings come from: command line > environment > file > defaults, each value with the name of its source.

A key that does not exist stops the start and names the nearest one; a value that is not accepted stops it with the
key, the value (never a secret) and what is accepted.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, get_args
from urllib.parse import SplitResult, urlsplit

from pydantic import ValidationError

from pipeline.errors import ConfigError
from settings import Settings, cache_directory, data_directory
from settings_guide import ALIASES, LIBRARY_VARIABLES, RETIRED, RETIRED_VALUES, VARIABLES
from settings_keys import (
    REDACTED,
    accepted,
    all_keys,
    field_of,
    is_secret,
    nearest_inside,
    nearest_key,
    one_line,
    section_type,
    shown,
)

CONFIGS: Final = Path(__file__).resolve().parent / "configs"
PROFILE_FILES: Final = {"cpu": CONFIGS / "cpu.json", "gpu": CONFIGS / "runpod_config.json"}
POD_VOLUME: Final = Path("/workspace")
_PREFIX: Final = "VOICEPOD__"
_FLAGS: Final = {
    "--host": ("network.host", "address to listen on"),
    "--port": ("network.port", "port to listen on"),
    "--tls-cert": ("network.tls_cert", "PEM certificate chain"),
    "--tls-key": ("network.tls_key", "PEM private key"),
    "--device": ("system.gpu_device", "auto, cpu, cuda or cuda:N"),
    "--max-users": ("system.max_concurrent_users", "talks served at once"),
    "--log-level": ("system.log_level", "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
    "--models-dir": ("models.dir", "directory of downloaded models"),
}
# What `performance.optimize_for_latency` means: an early first word, or fewer mistakes and interruptions for it.
OPTIMIZED_FOR: Final[dict[bool, dict[str, int]]] = {
    True: {"turn.end_wait_ms": 600, "turn.first_clause_min_chars": 12, "asr.beam_size": 1},
    False: {"turn.end_wait_ms": 900, "turn.first_clause_min_chars": 60, "asr.beam_size": 5},
}
# Setting -> folder of the tiny model that `pipeline.engines.tiny_models` writes for it.
RANDOM_TINY: Final = {"asr.path": "whisper", "llm.path": "chat", "models.tts_model_path": "fireredtts2"}
RANDOM_TINY_F5: Final = "f5"  # in place of the last one where tts.engine is f5
_LOOPBACK: Final = {"localhost", "::1"}


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was found, and where."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, the source of each key that is not a default, and what the operator should read at start.

    `library_variables` are the variables that stay in the environment for a library to read. `random_tiny` is where
    tiny models of random weights are to be written, None where real ones are used.
    """

    settings: Settings
    sources: dict[str, str]
    notices: list[str]
    profile: str
    print_config: bool
    random_tiny: Path | None
    library_variables: dict[str, str]

    def describe(self) -> str:
        """One line per key, `key = value  # source`, secrets redacted; then variables of libraries and notices."""
        rows = [(key, shown(self.settings, key), self.sources.get(key, "default")) for key in all_keys()]
        rows += [
            (name, json.dumps(value), f"environment, read by {LIBRARY_VARIABLES[name]}")
            for name, value in sorted(self.library_variables.items())
        ]
        lines = [f"{key} = {value}  # {source}" for key, value, source in rows]
        return "\n".join(lines + [f"# notice: {notice}" for notice in self.notices])


def load_settings(argv: Sequence[str] | None, environ: Mapping[str, str], file: Path | None = None) -> LoadedSettings:
    """The settings from all sources. `argv` is without the program's name; None means no command line.

    `file` is read unless `--config` names another; with neither it is `config.json` in the working directory, else
    the profile's file. Raises ConfigError; `--help` exits.
    """
    options = _parser().parse_args(list(argv or ()))
    config = Path(options.config) if options.config else file
    notices: list[str] = []
    if config is None:
        own = Path("config.json")
        config = own if os.path.lexists(own) else PROFILE_FILES[options.profile or "cpu"]
        if config == own and options.profile:
            notices.append(f"config.json is used instead of the file of profile {options.profile}")
    given: dict[str, Given] = {}
    layers = [_from_directories(environ), _from_file(config), _from_environment(environ), _from_options(options)]
    random_tiny = cache_directory(environ) / "random-tiny" if options.random_tiny else None
    if random_tiny is not None:
        layers.append(_from_random_tiny(random_tiny))
    for layer in layers:
        given |= _admit(layer, notices)
    settings = _validate(given)
    if random_tiny is not None and settings.tts.engine == "f5":
        models = settings.models.model_copy(update={"tts_model_path": random_tiny / RANDOM_TINY_F5})
        settings = settings.model_copy(update={"models": models})
    settings, expanded = _latency(settings, given)
    settings, derived = _quantization(settings, given)
    settings, reached = _host(settings, given)
    if pod := environ.get("RUNPOD_POD_ID"):
        _check_pod(settings)
        if settings.access.public_url is None:
            url = f"https://{pod}-{settings.network.port}.proxy.runpod.net"
            settings = settings.model_copy(update={"access": settings.access.model_copy(update={"public_url": url})})
            reached["access.public_url"] = "environment RUNPOD_POD_ID"
    notices += _advice(settings)
    return LoadedSettings(
        settings=settings,
        sources={key: entry.source for key, entry in given.items()} | expanded | derived | reached,
        notices=notices,
        profile=options.profile or "cpu",
        print_config=options.print_config,
        random_tiny=random_tiny,
        library_variables={name: environ[name] for name in LIBRARY_VARIABLES if environ.get(name)},
    )


def _from_directories(environ: Mapping[str, str]) -> Iterator[tuple[str, Given]]:
    if environ.get("VOICEPOD_DATA"):
        yield "storage.dir", Given(data_directory(environ), "environment VOICEPOD_DATA")
    elif environ.get("RUNPOD_POD_ID") and POD_VOLUME.is_dir():
        # All else on a pod is gone after a reset, and with it every key.
        yield "storage.dir", Given(POD_VOLUME / "voicepod", "environment RUNPOD_POD_ID")
    root = environ.get("VOICEPOD_CACHE")
    if not root:
        return
    for key, folder in (("models.dir", "models"), ("voices.dir", "voices"), ("cache.dir", "audio")):
        yield key, Given(Path(root) / folder, "environment VOICEPOD_CACHE")


def _from_file(path: Path) -> Iterator[tuple[str, Given]]:
    label = str(path.relative_to(CONFIGS.parent) if path.is_relative_to(CONFIGS) else path)
    try:
        document = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON configuration: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no JSON object")
    for name, content in document.items():
        field = Settings.model_fields.get(name)
        if field is None:
            raise ConfigError(f"unknown section {one_line(name)} in {path}; did you mean {nearest_key(name)}?")
        if section_type(field) is None:
            yield name, Given(content, label)
            continue
        if not isinstance(content, dict):
            raise ConfigError(f"{name} in {path} is not accepted: it takes an object with the section's keys")
        for key, value in content.items():
            dotted = f"{name}.{key}"
            if dotted in all_keys() and is_secret(dotted):
                raise ConfigError(f"{dotted} is a secret: set it in the environment, not in {path}")
            yield dotted, Given(value, label)


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Given]]:
    for variable, keys in VARIABLES.items():
        text = environ.get(variable)
        for key in keys if text else ():
            yield key, Given(_parsed(key, text or "", variable), f"environment {variable}")
    for variable in sorted(environ):
        if variable.startswith(_PREFIX) and environ[variable]:
            key = variable.removeprefix(_PREFIX).lower().replace("__", ".", 1)
            yield key, Given(_parsed(key, environ[variable], variable), f"environment {variable}")


def _from_options(options: argparse.Namespace) -> Iterator[tuple[str, Given]]:
    for flag, (key, _) in _FLAGS.items():
        text = getattr(options, flag.removeprefix("--").replace("-", "_"))
        if text is not None:
            yield key, Given(_parsed(key, text, flag), f"command line {flag}")
    for assignment in options.set:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError("--set takes section.key=value")
        if key in all_keys() and is_secret(key):
            raise ConfigError(f"{key} is a secret: set it in the environment, other users can see command lines")
        yield key, Given(_parsed(key, text, "--set"), "command line --set")


def _from_random_tiny(root: Path) -> Iterator[tuple[str, Given]]:
    """Every engine of the GPU profile reads a model of random weights."""
    source = "command line --random-tiny"
    for key, folder in RANDOM_TINY.items():
        yield key, Given(root / folder, source)
    yield "asr.light_model", Given(None, source)


def _admit(layer: Iterator[tuple[str, Given]], notices: list[str]) -> dict[str, Given]:
    """One source's keys under the names they have here; retired keys become notices."""
    given: dict[str, Given] = {}
    renamed: set[str] = set()
    for key, entry in layer:
        if key in RETIRED:
            if key in RETIRED_VALUES and entry.value not in (RETIRED_VALUES[key], str(RETIRED_VALUES[key]).lower()):
                raise ConfigError(f"{key} ({entry.source}) cannot be switched off: {RETIRED[key]}")
            notices.append(f"{key} ({entry.source}) has no effect: {RETIRED[key]}")
            continue
        name = ALIASES.get(key, key)
        if name not in all_keys():
            raise ConfigError(f"unknown key {one_line(key)} ({entry.source}); did you mean {nearest_key(key)}?")
        if name in given and (name != key or name in renamed):
            raise ConfigError(f"{name} is given twice ({entry.source}): once under its other name")
        if name != key:
            renamed.add(name)
        given[name] = entry
    return given


def _parsed(key: str, text: str, origin: str) -> Any:
    """The text of a variable or an option as the value that its key takes; unknown keys keep the text."""
    if key in RETIRED or (name := ALIASES.get(key, key)) not in all_keys() or is_secret(name):
        return text
    if name == "logging":
        try:
            return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise ConfigError(f"{name} ({origin}) is not accepted: it takes {accepted(name)}") from None
    field = field_of(name)
    choices = get_args(field.annotation)
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    if getattr(field.annotation, "__origin__", None) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    numbers = {str(choice): choice for choice in choices if isinstance(choice, int)}
    return numbers.get(text, text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are unique; the parser alone would keep the last of two."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {one_line(key)} stands there twice")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _validate(given: Mapping[str, Given]) -> Settings:
    tree: dict[str, Any] = {}
    for key, entry in given.items():
        section, _, name = key.partition(".")
        if name:
            tree.setdefault(section, {})[name] = entry.value
        else:
            tree[section] = entry.value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(dict(detail), given) for detail in error.errors(include_url=False)]
    except RecursionError:
        problems = ["the configuration is nested too deeply"]
    # Raised out here, so that no traceback shows the validator's copy of the values.
    raise ConfigError("\n".join(problems))


def _problem(detail: dict[str, Any], given: Mapping[str, Given]) -> str:
    """One line for one finding of the validator."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path[:2]) if ".".join(path[:2]) in all_keys() else path[0]
    where = f" ({given[key].source})" if key in given else ""
    place = one_line(".".join(path))
    reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
    if detail["type"] == "extra_forbidden":
        return f"unknown key {place}{where}; did you mean {nearest_inside(detail['loc'])}?"
    if key not in all_keys():
        return f"{place} is not accepted: {reason or 'an object with keys is expected'}"
    if is_secret(key):
        return f"{place} = {REDACTED}{where} is not accepted: it takes {accepted(key)}"
    value = "" if isinstance(detail["input"], dict | list | tuple) else f" = {one_line(detail['input'])}"
    if place != key:
        return f"{place}{value}{where} is not accepted: {reason or detail['msg']}"
    return f"{place}{value}{where} is not accepted: it takes {reason or accepted(key)}"


def _latency(settings: Settings, given: Mapping[str, Given]) -> tuple[Settings, dict[str, str]]:
    """`performance.optimize_for_latency` stands for these settings, unless they are given themselves."""
    wanted = settings.performance.optimize_for_latency
    source = f"performance.optimize_for_latency {str(wanted).lower()}"
    expanded = {}
    for key, value in OPTIMIZED_FOR[wanted].items():
        if key not in given:
            section, _, name = key.partition(".")
            changed = getattr(settings, section).model_copy(update={name: value})
            settings, expanded[key] = settings.model_copy(update={section: changed}), source
    return settings, expanded


def _quantization(settings: Settings, given: Mapping[str, Given]) -> tuple[Settings, dict[str, str]]:
    """The guide's quantisation keys choose `asr.compute_type` and `llm.bits`, unless those are given themselves."""
    asked = [key for key in given if key.startswith("model_optimization.")]
    if not asked:
        return settings, {}
    source, derived, wanted = f"{given[asked[0]].source}, by model_optimization", {}, settings.model_optimization
    bits = wanted.quantization_bits
    if "asr.compute_type" not in given:
        # CTranslate2 and Whisper know no weights of 4 bits.
        compute_type = f"int{max(bits, 8)}" if wanted.enable_quantization else "default"
        asr = settings.asr.model_copy(update={"compute_type": compute_type})
        settings, derived["asr.compute_type"] = settings.model_copy(update={"asr": asr}), source
    if "llm.bits" not in given:
        llm = settings.llm.model_copy(update={"bits": bits if wanted.enable_quantization else 16})
        settings, derived["llm.bits"] = settings.model_copy(update={"llm": llm}), source
    return settings, derived


def _host(settings: Settings, given: Mapping[str, Given]) -> tuple[Settings, dict[str, str]]:
    """Where everyone needs a key the server can be reached from everywhere, unless a host is given."""
    if "network.host" in given or settings.access.mode != "keys":
        return settings, {}
    network = settings.network.model_copy(update={"host": "0.0.0.0"})  # noqa: S104 - every door asks for a key
    return settings.model_copy(update={"network": network}), {"network.host": "access.mode keys"}


def _check_pod(settings: Settings) -> None:
    """A pod's URL is public and its GPU costs money: what protects it is not switched off in passing."""
    if settings.access.mode == "open" and not settings.access.force_open:
        raise ConfigError(
            "access.mode open would let everyone who finds this pod's public URL use it; "
            "leave it at keys, or set access.force_open as well"
        )
    if not settings.security.rate_limiting:
        raise ConfigError("security.rate_limiting cannot be switched off on a RunPod pod: its URL is public")


def _advice(settings: Settings) -> Iterator[str]:
    network = settings.network
    if network.cors_enabled and not network.allowed_origins:
        yield "network.cors_enabled lets nobody in: network.allowed_origins is empty"
    if settings.access.mode == "open" and not (network.host in _LOOPBACK or network.host.startswith("127.")):
        yield f"network.host {network.host} with access.mode open: everyone who can reach this port can use everything"
    if settings.llm.engine == "openai" and settings.llm.base_url is not None:
        yield from _about_the_chat_server(urlsplit(settings.llm.base_url), has_key=settings.llm.api_key is not None)


def _about_the_chat_server(url: SplitResult, *, has_key: bool) -> Iterator[str]:
    host = url.hostname or ""
    if host in _LOOPBACK or host.startswith("127."):
        return
    yield f"llm.base_url is another machine: what people say is sent to {host}"
    if url.scheme == "http":
        yield f"llm.base_url is not https: {'the key and ' if has_key else ''}every word can be read on the way"


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as ConfigError instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {one_line(message)}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As usual, but an unknown option names the nearest one."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            nearest = difflib.get_close_matches(word, list(self._option_string_actions), 1, 0.0)[0]
            raise ConfigError(f"unknown option {one_line(word)}; did you mean {nearest}?")
        return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="app.py", description="Talk to a local AI in your browser.", allow_abbrev=False)
    parser.add_argument("--profile", choices=sorted(PROFILE_FILES), help="which configuration to start from")
    parser.add_argument("--config", metavar="FILE", help="configuration file (default: config.json, if present)")
    for flag, (_, description) in _FLAGS.items():
        parser.add_argument(flag, help=description)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any other setting")
    parser.add_argument(
        "--random-tiny", action="store_true", help="tiny models of random weights, to try the GPU profile anywhere"
    )
    parser.add_argument("--print-config", action="store_true", help="show every value with its source, then exit")
    return parser
