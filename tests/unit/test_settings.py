"""The settings tree and its sources."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import ConfigError
from private_files import make_private_directory
from settings import LlmSettings, NetworkSettings, Settings, TurnSettings, VadSettings
from settings_guide import LIBRARY_VARIABLES, VARIABLES
from settings_keys import accepted, all_keys, field_of, is_secret
from settings_sources import PROFILE_FILES, LoadedSettings, load_settings

CANARY = "canary-3f9a"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*VARIABLES, *LIBRARY_VARIABLES, "VOICEPOD_CACHE", "VOICEPOD_DATA", "RUNPOD_POD_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def load(
    *argv: str, environ: Mapping[str, str] | None = None, document: Any = None, file: Path = Path("settings.json")
) -> LoadedSettings:
    """Loads with `document` as the configuration file; an empty one unless given."""
    file.write_text(json.dumps({} if document is None else document))
    return load_settings(argv, environ or {}, file)


def refused(*argv: str, environ: Mapping[str, str] | None = None, document: Any = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*argv, environ=environ, document=document)
    return caught.value.message


def value_of(settings: Settings, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name) if name else getattr(settings, section)


def test_defaults_are_the_documented_ones() -> None:
    settings = load("--host", "127.0.0.1").settings
    assert settings == Settings()
    assert (settings.network.host, settings.network.port, settings.network.max_sockets) == ("127.0.0.1", 7860, 100)
    assert (settings.tts.engine, settings.tts.voice) == ("kokoro", "af_heart")
    assert settings.logging is None


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().network.port = 1


def test_every_field_says_what_it_is_in_one_line() -> None:
    for key in all_keys():
        description = field_of(key).description or ""
        assert description.endswith("."), key
        assert "\n" not in description, key


def test_every_default_is_something_the_key_takes() -> None:
    tree: dict[str, dict[str, Any]] = {}
    for key in all_keys():
        if key != "logging":
            section, _, name = key.partition(".")
            tree.setdefault(section, {})[name] = value_of(Settings(), key)
    assert Settings.model_validate(tree) == Settings()


def test_sources_win_in_their_order() -> None:
    document = {"network": {"port": 1}}
    short, full = {"GRADIO_SERVER_PORT": "2"}, {"VOICEPOD__NETWORK__PORT": "3"}
    layers: list[tuple[int, str, LoadedSettings]] = [
        (7860, "default", load()),
        (1, "settings.json", load(document=document)),
        (2, "environment GRADIO_SERVER_PORT", load(document=document, environ=short)),
        (3, "environment VOICEPOD__NETWORK__PORT", load(document=document, environ=short | full)),
        (4, "command line --port", load("--port", "4", document=document, environ=short | full)),
    ]
    for port, source, loaded in layers:
        assert loaded.settings.network.port == port
        assert loaded.sources.get("network.port", "default") == source


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--host", "::1"], "network.host", "::1"),
        (["--port", "0"], "network.port", 0),
        (["--max-users", "9"], "system.max_concurrent_users", 9),
        (["--log-level", "debug"], "system.log_level", "DEBUG"),
        (["--models-dir", "/m"], "models.dir", Path("/m")),
        (["--set", "turn.end_wait_ms=700"], "turn.end_wait_ms", 700),
        (["--set", "turn.echo_guard=off"], "turn.echo_guard", False),
        (["--set", "audio.sample_rate=22050"], "audio.sample_rate", 22050),
        (["--set", "tts.speed=1.25"], "tts.speed", 1.25),
        (["--set", "models.tts_model_path=none"], "models.tts_model_path", None),
        (["--set", "network.allowed_origins=https://a.example, http://b.example:81"], "network.allowed_origins",
         ("https://a.example", "http://b.example:81")),
        (["--set", "system.model_cache_size=3"], "system.max_loaded_models", 3),
        (["--set", "llm.system_prompt=Say a=b."], "llm.system_prompt", "Say a=b."),
    ],
)  # fmt: skip
def test_the_command_line_sets_values(argv: list[str], key: str, value: object) -> None:
    assert value_of(load(*argv).settings, key) == value


def test_tls_needs_both_files() -> None:
    loaded = load("--tls-cert", "c.pem", "--tls-key", "k.pem")
    assert loaded.settings.network.tls_key == Path("k.pem")
    assert "set together" in refused("--tls-cert", "c.pem")


@pytest.mark.parametrize("key", [key for key in all_keys() if key != "logging" and not is_secret(key)])
def test_every_key_can_be_set_from_the_environment(key: str) -> None:
    section, _, name = key.partition(".")
    value = value_of(Settings(), key)
    text = "none" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)
    variable = f"VOICEPOD__{section}__{name}".upper()
    loaded = load(environ={variable: text})
    assert value_of(loaded.settings, key) == value
    # An empty list is an empty variable, and an empty variable is no variable.
    assert loaded.sources.get(key) == (f"environment {variable}" if text else None)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("network.prot", "network.port"),
        ("port", "network.port"),
        ("networks", "network"),
        ("turn.endwaitms", "turn.end_wait_ms"),
        ("audio.host", "network.host"),
        ("tts.voices", "tts.voice"),
    ],
)
def test_an_unknown_key_names_the_nearest_one_from_every_source(wrong: str, nearest: str) -> None:
    section, _, name = wrong.partition(".")
    variable = "VOICEPOD__" + wrong.upper().replace(".", "__")
    document = {section: {name: 1}} if name else {section: {}}
    for message in (
        refused("--set", f"{wrong}=1"),
        refused(environ={variable: "1"}),
        refused(document=document),
    ):
        assert wrong in message
        assert f"did you mean {nearest}?" in message


def test_an_unknown_option_names_the_nearest_one() -> None:
    assert refused("--prot", "1") == "unknown option --prot; did you mean --port?"
    assert refused("--max", "1") == "unknown option --max; did you mean --max-users?"


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [
        ("network.port", 65536, "a whole number from 0 up to 65535"),
        ("network.port", True, "a number, not true or false"),
        ("network.port", None, "a whole number from 0 up to 65535"),
        ("system.log_level", "LOUD", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("system.gpu_device", "tpu", "auto, cpu, cuda or cuda:N"),
        ("audio.channels", 2, "1"),
        ("vad.threshold", 1, "a number above 0 below 1"),
        ("network.host", "a b", "a host name or address"),
        ("models.dir", 7, "a path"),
        ("access.public_url", "ftp://x", "an http or https URL or null"),
    ],
)
def test_a_value_that_is_not_accepted_is_refused_with_key_value_and_what_is(key: str, value: Any, takes: str) -> None:
    section, _, name = key.partition(".")
    message = refused(document={section: {name: value}})
    assert message == f"{key} = {value} (settings.json) is not accepted: it takes {takes}"


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: NetworkSettings(seat_hold_s=60, session_resume_s=30), "seat_hold_s"),
        (lambda: VadSettings(threshold=0.9), "speaking_threshold"),
        (lambda: VadSettings(min_speech_ms=400), "speaking_min_speech_ms"),
        (lambda: TurnSettings(first_clause_min_chars=100, piece_max_chars=50), "first_clause_min_chars"),
        (lambda: LlmSettings(context_tokens=512), "context_tokens"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(build: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        build()


@pytest.mark.parametrize("origin", ["*", "https://*.example.org", "https://a.example/path", "file:///x", "a.example"])
def test_origins_are_exact_and_a_star_is_refused(origin: str) -> None:
    assert "network.allowed_origins" in refused(document={"network": {"allowed_origins": [origin]}})
    assert any("lets nobody in" in notice for notice in load("--set", "network.cors_enabled=true").notices)


@pytest.mark.parametrize("profile", PROFILE_FILES)
def test_without_a_host_keys_mode_listens_everywhere_and_open_mode_on_loopback(profile: str) -> None:
    loaded = load_settings(["--profile", profile], {})
    assert (loaded.settings.access.mode, loaded.settings.network.host) == ("keys", "0.0.0.0")
    assert loaded.sources["network.host"] == "access.mode keys"
    opened = load_settings(["--profile", profile, "--set", "access.mode=open"], {})
    assert opened.settings.network.host == "127.0.0.1"
    assert not opened.notices


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_host_that_was_asked_for_acts_and_open_mode_says_what_that_means(host: str) -> None:
    for loaded in (
        load("--host", host),
        load(environ={"GRADIO_SERVER_NAME": host}),
        load(environ={"VOICEPOD__NETWORK__HOST": host}),
        load(document={"network": {"host": host}}),
    ):
        assert loaded.settings.network.host == host
        assert not loaded.notices
    opened = load("--host", host, "--set", "access.mode=open")
    assert opened.settings.network.host == host
    assert any("everyone who can reach this port" in notice for notice in opened.notices)
    assert load("--host", "127.0.0.1").settings.network.host == "127.0.0.1"


POD = {"RUNPOD_POD_ID": "abc123"}


def test_on_a_pod_open_mode_must_be_forced_and_limits_stay_on() -> None:
    assert load("--set", "access.mode=open").settings.access.mode == "open"
    assert "access.force_open" in refused("--set", "access.mode=open", environ=POD)
    forced = load("--set", "access.mode=open", "--set", "access.force_open=true", environ=POD)
    assert forced.settings.access.mode == "open"
    assert not load("--set", "security.rate_limiting=false").settings.security.rate_limiting
    assert "cannot be switched off" in refused("--set", "security.rate_limiting=false", environ=POD)


def test_on_a_pod_links_name_its_public_address_and_data_lies_on_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(environ=POD).settings.access.public_url == "https://abc123-7860.proxy.runpod.net"
    own = load("--set", "access.public_url=https://talk.example", environ=POD)
    assert own.settings.access.public_url == "https://talk.example"
    monkeypatch.setattr("settings_sources.POD_VOLUME", tmp_path)
    assert load(environ=POD).settings.storage.dir == tmp_path / "voicepod"
    assert load(environ={**POD, "VOICEPOD_DATA": "/data"}).settings.storage.dir == Path("/data")
    assert load().settings.storage.dir != tmp_path / "voicepod"


def test_the_file_is_the_named_one_then_the_operators_then_the_profiles() -> None:
    assert load_settings(["--profile", "gpu"], {}).settings.tts.engine == "firered"
    assert load_settings(None, {}).settings.system.gpu_device == "cpu"
    Path("config.json").write_text('{"network": {"port": 1}}')
    Path("named.json").write_text('{"network": {"port": 2}}')
    assert load_settings([], {}).settings.network.port == 1
    assert load_settings(["--config", "named.json"], {}).settings.network.port == 2
    assert load_settings(["--profile", "gpu"], {}).notices == ["config.json is used instead of the file of profile gpu"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no JSON configuration"),
        ("[]", "holds no JSON object"),
        ('{"network": 1}', "it takes an object"),
        ('{"network": {"port": 1, "port": 2}}', "stands there twice"),
        ('{"tts": {"speed": NaN}}', "NaN"),
        ('{"system": {"model_cache_size": 1, "max_loaded_models": 2}}', "is given twice"),
        ("[" * 100_000, "nested too deeply"),
        ("\ufeff{", "is no JSON configuration"),
        ('{"vad": {"threshold": 1e999}}', "vad.threshold"),
    ],
)
def test_a_broken_file_is_named(text: str, reason: str) -> None:
    Path("broken.json").write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.json") as caught:
        load_settings(["--config", "broken.json"], {})
    assert reason in caught.value.message


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: No such file"):
        load_settings(["--config", "nowhere.json"], {})


@pytest.mark.parametrize("key", [key for key in all_keys() if is_secret(key)])
def test_secrets_come_from_the_environment_only_and_are_never_shown(key: str) -> None:
    section, _, name = key.partition(".")
    loaded = load(environ={f"VOICEPOD__{section}__{name}".upper(): CANARY})
    assert value_of(loaded.settings, key).get_secret_value() == CANARY
    assert CANARY not in loaded.describe() + repr(loaded)
    assert f"{key} = [redacted]" in loaded.describe()
    for message in (refused(document={section: {name: CANARY}}), refused("--set", f"{key}={CANARY}")):
        assert "environment" in message
        assert CANARY not in message
    assert accepted(key) == "a secret, from the environment only"


def test_a_wrong_secret_is_not_shown() -> None:
    assert refused(environ={"OPENAI_API_KEY": CANARY * 4096}) == (
        "llm.api_key = [redacted] (environment OPENAI_API_KEY) is not accepted: it takes a secret, from the "
        "environment only"
    )


def test_messages_stay_on_one_line_whatever_the_value_holds() -> None:
    message = refused("--set", "network.host=a\nnetwork.port = 1\x1b[2J\u202e")
    assert message.isprintable()


def test_print_config_shows_each_value_with_its_source() -> None:
    loaded = load("--print-config", "--port", "8000", environ={"HF_HOME": "/h"}, document={"tts": {"speed": 1.5}})
    lines = loaded.describe().splitlines()
    assert loaded.print_config
    assert "network.port = 8000  # command line --port" in lines
    assert "tts.speed = 1.5  # settings.json" in lines
    assert "tts.voice = \"af_heart\"  # default" in lines  # fmt: skip
    assert 'HF_HOME = "/h"  # environment, read by huggingface_hub' in lines
    assert len(lines) == len(all_keys()) + 1


def test_the_cache_directory_moves_models_voices_and_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(environ={"VOICEPOD_CACHE": str(tmp_path)}).settings
    assert settings.models.dir == tmp_path / "models"
    assert settings.cache.dir == tmp_path / "audio"
    monkeypatch.setenv("VOICEPOD_CACHE", str(tmp_path))
    assert Settings().voices.dir == tmp_path / "voices"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container runs whose user has no entry in /etc/passwd."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    assert "set HOME or VOICEPOD_CACHE" in refused()


@pytest.mark.parametrize(
    ("block", "compute_type", "llm_bits"),
    [
        ({"model_optimization": {"enable_quantization": True, "quantization_bits": 8}}, "int8", 8),
        ({"model_optimization": {"quantization_bits": 16}}, "int16", 16),
        ({"model_optimization": {"quantization_bits": 4}}, "int8", 4),
        ({"model_optimization": {"enable_quantization": False}}, "default", 16),
        ({"model_optimization": {"quantization_bits": 16}, "asr": {"compute_type": "float32"}}, "float32", 16),
        ({"model_optimization": {"quantization_bits": 8}, "llm": {"bits": 4}}, "int8", 4),
        ({}, "int8", 16),
    ],
)
def test_quantisation_chooses_the_formats_that_are_not_set(
    block: dict[str, Any], compute_type: str, llm_bits: int
) -> None:
    settings = load(document=block).settings
    assert (settings.asr.compute_type, settings.llm.bits) == (compute_type, llm_bits)


def test_a_private_directory_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "a" / "audio"
    make_private_directory(path, "cache.dir")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o755)
    make_private_directory(path, "cache.dir")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_private_directory_is_no_link_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(ConfigError, match=r"cache\.dir"):
            make_private_directory(tmp_path / name, "cache.dir")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(all_keys())


@st.composite
def _documents(draw: st.DrawFn) -> dict[str, Any]:
    """Files that are nearly right: real keys with any value, and now and then a made-up one."""
    document: dict[str, Any] = {}
    for key in draw(st.lists(_keys, max_size=4)):
        section, _, name = key.partition(".")
        if name:
            document.setdefault(section, {})[name] = draw(_json)
        else:
            document[section] = draw(_json)
    if draw(st.booleans()):
        document |= draw(st.dictionaries(st.text(max_size=8), _json, max_size=2))
    return document


@given(document=_documents() | _json)
def test_any_file_gives_settings_or_a_config_error(document: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(document))
    try:
        loaded = load_settings(None, {}, file)
    except ConfigError as error:
        assert error.message  # noqa: PT017 - both outcomes are right
    else:
        assert Settings.model_validate(loaded.settings.model_dump(by_alias=True)) == loaded.settings


@given(key=_keys, text=st.text(max_size=20).filter(lambda text: "\0" not in text))
def test_any_text_gives_settings_or_a_config_error(
    key: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "empty.json"
    file.write_text("{}")
    for argv, environ in (
        (["--set", f"{key}={text}"], {}),
        ([], {f"VOICEPOD__{key.replace('.', '__').upper()}": text}),
    ):
        try:
            assert isinstance(load_settings(argv, environ, file).settings, Settings)
        except ConfigError as error:
            assert error.message  # noqa: PT017 - both outcomes are right


def test_optimize_for_latency_stands_for_settings_that_are_shown(tmp_path: Path) -> None:
    def loaded(**performance: bool) -> LoadedSettings:
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"performance": performance, "asr": {"beam_size": 3}}))
        return load_settings([], {}, file)

    early, late = loaded(optimize_for_latency=True), loaded(optimize_for_latency=False)
    assert loaded().settings == early.settings  # it is on by default
    assert early.settings.turn.end_wait_ms < late.settings.turn.end_wait_ms
    assert early.settings.turn.first_clause_min_chars < late.settings.turn.first_clause_min_chars
    assert early.settings.asr.beam_size == late.settings.asr.beam_size == 3  # given, so not expanded
    assert "turn.end_wait_ms = 900  # performance.optimize_for_latency false" in late.describe()
    assert f"asr.beam_size = 3  # {tmp_path}" in late.describe()


def test_random_tiny_points_every_engine_at_a_model_of_random_weights(tmp_path: Path) -> None:
    options = ["--profile", "gpu", "--random-tiny", "--device", "cpu"]
    loaded = load_settings(options, {"VOICEPOD_CACHE": str(tmp_path)})
    assert loaded.random_tiny == tmp_path / "random-tiny"
    settings = loaded.settings
    assert {settings.asr.path, settings.llm.path, settings.models.tts_model_path} == {
        loaded.random_tiny / folder for folder in ("whisper", "chat", "fireredtts2")
    }
    assert settings.system.gpu_device == "cpu"
    with_f5 = load_settings([*options, "--set", "tts.engine=f5"], {"VOICEPOD_CACHE": str(tmp_path)})
    assert with_f5.settings.models.tts_model_path == tmp_path / "random-tiny" / "f5"
    assert load_settings(options[:2], {"VOICEPOD_CACHE": str(tmp_path)}).random_tiny is None
