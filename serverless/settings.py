"""The worker's settings: one frozen value, read from the environment at start and handed to whoever needs it.

Nothing else of the worker reads the environment. Every field names its variable; a value that is not accepted stops the
start with the variable's name. `python -m serverless.settings show --redact` prints each variable with its value, but
no secret (without the flag as well).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from pipeline.errors import ConfigError
from settings import LogLevel, cache_directory, data_directory

RUNPOD_VOLUME: Final = Path("/runpod-volume")
REDACTED: Final = "[redacted]"

# Options of PyTorch's CUDA allocator, from its documentation: the value each takes.
_TRUTH, _MB, _POWER_OF_2 = "True|False", r"\d{1,7}", "1|2|4|8|16|32|64|128"
_MB_ABOVE_20: Final = r"2[1-9]|[3-9]\d|[1-9]\d{2,6}"
_FRACTION: Final = r"0?\.\d*[1-9]\d*"
_ALLOCATOR_OPTIONS: Final = {
    "max_split_size_mb": _MB_ABOVE_20,
    "roundup_power2_divisions": rf"{_POWER_OF_2}|\[(\d{{1,6}}:({_POWER_OF_2}|0),)*(\d{{1,6}}|>):({_POWER_OF_2}|0)\]",
    "garbage_collection_threshold": _FRACTION,
    "expandable_segments": _TRUTH,
    "backend": "native|cudaMallocAsync",
    "max_non_split_rounding_mb": _MB_ABOVE_20,
    "per_process_memory_fraction": rf"1(\.0+)?|{_FRACTION}",
    "release_lock_on_cudamalloc": _TRUTH,
    "throw_on_cudamalloc_oom": _TRUTH,
    "graph_capture_record_stream_reuse": _TRUTH,
    "pinned_use_cuda_host_register": _TRUTH,
    "pinned_use_background_threads": _TRUTH,
    "pinned_num_register_threads": _POWER_OF_2,
    "pinned_reserve_segment_size_mb": _MB,
}
_ADDRESS: Final = r"^https?://[^\s/@]+[^\s@]*$"  # without a password: settings are shown
_CARDS: Final = r"^(-1|(\d+|GPU-[\w-]+|MIG-[\w-]+)(,(\d+|GPU-[\w-]+|MIG-[\w-]+))*)$"
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_MODEL: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _truth(value: object) -> object:
    """Only these words, so that `ENABLE_S3_MODEL_CACHE=disabled` is an error and not a yes."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, str):
        if value.lower() not in words:
            raise ValueError("true or false")
        return words[value.lower()]
    return value


def _allocator(value: str | None) -> str | None:
    """PyTorch's own grammar, without the quotes that consoles paste along: it names no variable when it refuses."""
    if value is None:
        return None
    options = re.sub(r"\s", "", value.strip().strip("\"'"))
    for part in re.split(r",(?![^\[]*\])", options):
        name, colon, setting = part.partition(":")
        takes = _ALLOCATOR_OPTIONS.get(name)
        if not colon or takes is None:
            raise ValueError(f"option:value pairs with commas; options are {', '.join(sorted(_ALLOCATOR_OPTIONS))}")
        if not re.fullmatch(takes, setting, re.ASCII):
            least = ", which is above 20" if takes == _MB_ABOVE_20 else ""
            raise ValueError(f"for {name} a value that PyTorch knows{least}")
    return options


def _bucket(value: str | None) -> str | None:
    """S3's rules of names: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html."""
    if value is not None:
        is_address = re.fullmatch(r"\d+\.\d+\.\d+\.\d+", value)
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", value) or ".." in value or is_address:
            raise ValueError("3 to 63 small letters, digits, dots and hyphens, as S3 names buckets")
    return value


Truth = Annotated[bool, BeforeValidator(_truth)]


def _from(variable: str, default: Any, description: str, *also: str, **constraints: Any) -> Any:
    """A field that is read from `variable`, else from the first of `also` that is set."""
    extra: dict[str, Any] = {"variables": [variable, *also]}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class WorkerSettings(BaseModel):
    """What the worker runs on. Seconds where a name ends in `_s`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    # Where voices, results and models are kept.
    storage: Literal["s3", "local"] = _from("STORAGE", "s3", "An S3 bucket, or a directory on a laptop.")
    storage_dir: Path = _from("STORAGE_DIR", Path("storage"), "Directory of STORAGE=local.")
    storage_url: str | None = _from(
        "STORAGE_URL", None, "Where the files of STORAGE=local are served.", pattern=_ADDRESS
    )
    storage_secret: SecretStr | None = _from(
        "STORAGE_SECRET", None, "Signs the URLs of STORAGE=local; the server of the files has the same.", min_length=16
    )
    bucket: Annotated[str | None, AfterValidator(_bucket)] = _from(
        "S3_BUCKET", None, "Bucket of voices, results and models; required unless STORAGE=local."
    )
    access_key_id: SecretStr | None = _from("AWS_ACCESS_KEY_ID", None, "Id of the key; none asks AWS's own chain.")
    secret_access_key: SecretStr | None = _from("AWS_SECRET_ACCESS_KEY", None, "The key.")
    session_token: SecretStr | None = _from("AWS_SESSION_TOKEN", None, "Token of temporary credentials.")
    endpoint_url: str | None = _from(
        "AWS_ENDPOINT_URL", None, "An S3-compatible service; none is AWS.", pattern=_ADDRESS
    )
    region: str = _from("AWS_REGION", "us-east-1", "Region of the bucket.", "AWS_DEFAULT_REGION", pattern=_NAME)
    model_cache: Truth = _from(
        "ENABLE_S3_MODEL_CACHE", True, "Read models from the bucket, and put them there after the first download."
    )
    presign_seconds: int = _from(
        "PRESIGN_SECONDS", 3600, "Seconds that the URLs of results are valid.", ge=1, le=604_800
    )

    # Jobs.
    request_timeout_s: float = _from("REQUEST_TIMEOUT", 30.0, "Seconds that one HTTP request may take.", gt=0, le=600)
    processing_timeout_s: float = _from("PROCESSING_TIMEOUT", 300.0, "Seconds that one job may take.", gt=0, le=604_800)
    max_text_chars: int = _from("MAX_TEXT_CHARS", 5000, "Characters of text in one job.", ge=1, le=100_000)
    concurrency: int = _from(
        "WORKER_CONCURRENCY", 1, "Jobs held at once; one of them speaks, and a waiting one's time runs.", ge=1, le=8
    )
    allow_private_urls: Truth = _from(
        "ALLOW_PRIVATE_URLS", False, "Let voice URLs be http and reach private addresses; for tests only."
    )
    voice_cache_mb: int = _from("VOICE_CACHE_MB", 512, "Disk space of voices that were used, in MB.", ge=1)

    # The model.
    device: str = _from("DEVICE", "auto", "auto, cpu, cuda or cuda:N.", pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")
    allow_cpu: Truth = _from("ALLOW_CPU", False, "Serve without a card; else its absence stops the start.")
    cpu_threads: int | None = _from("OMP_NUM_THREADS", None, "Threads on a CPU; none is torch's choice.", ge=1, le=256)
    f5_model: str = _from("F5_MODEL", "F5TTS_v1_Base", "Name of the model's configuration.", pattern=_MODEL)
    f5_model_dir: Path | None = _from("F5_MODEL_DIR", None, "Directory with the weights, such as a baked one.")
    attention: Literal["torch", "flash_attn"] = _from("F5_ATTENTION", "torch", "Attention of the model.")
    nfe_step: int = _from(
        "NFE_STEP", 32, "Steps of the solver where a job asks for none; fewer are faster.", ge=4, le=64
    )
    ctc_model_dir: Path | None = _from("CTC_MODEL_DIR", None, "Directory of a wav2vec2 model for word times.")
    whisper_model_dir: Path | None = _from(
        "WHISPER_MODEL_DIR", None, "Directory of a Whisper that writes down voices uploaded without ref_text."
    )
    watermark: Literal["auto", "true", "false"] = _from(
        "WATERMARK", "auto", "Mark all speech inaudibly; auto does where the mark's model is there."
    )
    models_dir: Path = _from("MODEL_CACHE_DIR", Path("models"), "Directory of the app's models (the watermark's).")
    warm_up: Truth = _from("WARM_UP", True, "Speak once at start, so that the first job is not the slow one.")
    cuda_visible_devices: str | None = _from(
        "CUDA_VISIBLE_DEVICES", None, "Cards that the driver shows.", pattern=_CARDS
    )
    allocator: Annotated[str | None, AfterValidator(_allocator)] = _from(
        "PYTORCH_ALLOC_CONF",
        None,
        "Options of PyTorch's CUDA allocator; expandable_segments:True is the better cure for fragments.",
        "PYTORCH_CUDA_ALLOC_CONF",
    )

    # Caches.
    cache_dir: Path = _from("CACHE_DIR", Path("cache"), "Directory of downloaded models and voices.")
    volume_dir: Path = _from("VOLUME_DIR", RUNPOD_VOLUME, "Where RunPod mounts its volume and its cached models.")
    hf_home: Path = _from("HF_HOME", Path("huggingface"), "Directory of huggingface_hub.")
    hf_hub_cache: Path = _from("HF_HUB_CACHE", Path("hub"), "Its repositories.")
    torch_home: Path = _from("TORCH_HOME", Path("torch"), "Directory of torch.hub.")
    hf_token: SecretStr | None = _from("HF_TOKEN", None, "Token for repositories that ask for one.")

    # Google Speech-to-Text, for word times.
    google_credentials_json: SecretStr | None = _from(
        "GOOGLE_CREDENTIALS_JSON", None, "Service account as JSON; goes before the file."
    )
    google_credentials_file: Path | None = _from("GOOGLE_APPLICATION_CREDENTIALS", None, "File of the service account.")
    google_project: str | None = _from("GOOGLE_CLOUD_PROJECT", None, "Project that is billed.", pattern=_NAME)

    # RunPod and the log.
    log_level: LogLevel = _from("LOG_LEVEL", "INFO", "Lowest level of our own records.")
    runpod_log_level: Literal["ERROR", "WARN", "INFO"] = _from(
        "RUNPOD_LOG_LEVEL", "INFO", "Of RunPod's SDK. Its DEBUG writes whole results into the log, and is refused."
    )
    runpod_api_key: SecretStr | None = _from("RUNPOD_AI_API_KEY", None, "Given by RunPod.")
    endpoint_id: str | None = _from(
        "RUNPOD_ENDPOINT_ID", None, "Given by RunPod; idempotency keys are its own.", pattern=r"^[A-Za-z0-9_-]{1,50}$"
    )
    worker_id: str | None = _from("RUNPOD_POD_ID", None, "Given by RunPod; stands in a job's record.", pattern=_NAME)

    @model_validator(mode="after")
    def _together(self) -> WorkerSettings:
        if self.storage == "s3" and self.bucket is None:
            raise ValueError("S3_BUCKET is required, unless STORAGE=local")
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set together or not at all")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("AWS_SESSION_TOKEN needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return self

    def export(self, environ: dict[str, str] | os._Environ[str]) -> None:
        """Puts into `environ` what libraries read from it themselves; before any of them is imported."""
        if self.allocator is not None:
            environ["PYTORCH_ALLOC_CONF"] = environ["PYTORCH_CUDA_ALLOC_CONF"] = self.allocator
        environ["HF_HOME"], environ["HF_HUB_CACHE"] = str(self.hf_home), str(self.hf_hub_cache)
        environ["TORCH_HOME"] = str(self.torch_home)
        environ["RUNPOD_LOG_LEVEL"] = self.runpod_log_level
        environ["HF_HUB_DISABLE_TELEMETRY"] = environ["DO_NOT_TRACK"] = "1"


def variables_of(field: str) -> tuple[str, ...]:
    """The variables that a field of `WorkerSettings` is read from, the first one that is set winning."""
    extra = WorkerSettings.model_fields[field].json_schema_extra
    assert isinstance(extra, dict)
    return tuple(str(name) for name in extra["variables"])  # type: ignore[union-attr]


VARIABLES: Final = tuple(name for field in WorkerSettings.model_fields for name in variables_of(field))


def load(environ: Mapping[str, str]) -> WorkerSettings:
    """The settings from the environment; an empty variable counts as not set. ConfigError names the variable."""
    environ = {name: text for name, value in environ.items() if (text := value.strip())}
    given: dict[str, Any] = _directories(environ)
    read_from: dict[str, str] = {}
    for field in WorkerSettings.model_fields:
        for variable in variables_of(field):
            if variable in environ and field not in read_from:
                given[field], read_from[field] = environ[variable], variable
    try:
        return WorkerSettings.model_validate(given)
    except ValidationError as error:
        raise ConfigError("; ".join(_told(detail, read_from) for detail in error.errors())) from None


def _directories(environ: Mapping[str, str]) -> dict[str, Any]:
    """On a volume that this user may write they outlive the worker, and the next one finds the models there."""
    volume = Path(environ.get("VOLUME_DIR") or RUNPOD_VOLUME)
    kept = volume if os.access(volume, os.W_OK | os.X_OK) else cache_directory(environ)
    cache = Path(environ.get("CACHE_DIR") or kept / "serverless")
    hf_home = Path(environ.get("HF_HOME") or cache / "huggingface")
    return {
        "storage_dir": data_directory(environ) / "serverless",
        "models_dir": cache_directory(environ) / "models",
        "cache_dir": cache,
        "hf_home": hf_home,
        "hf_hub_cache": hf_home / "hub",
        "torch_home": cache / "torch",
    }


def _told(detail: Any, read_from: Mapping[str, str]) -> str:
    reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
    if not detail["loc"]:
        return reason
    field = str(detail["loc"][0])
    variable = read_from.get(field, variables_of(field)[0])
    takes = reason or detail["msg"].replace("Input should", "it should").replace("String should", "it should")
    # A URL may hold a password.
    shown = "" if _is_secret(field) or field.endswith("_url") else f" = {str(detail['input'])[:80]!r}"
    return f"{variable}{shown} is not accepted: {'it takes ' if reason else ''}{takes}"


def _is_secret(field: str) -> bool:
    return "SecretStr" in str(WorkerSettings.model_fields[field].annotation)


def describe(settings: WorkerSettings) -> str:
    """One line a variable, `VARIABLE = value  # what it is`; secrets are only said to be there or not."""
    lines = []
    for name, field in WorkerSettings.model_fields.items():
        value = getattr(settings, name)
        shown = "" if value is None else REDACTED if _is_secret(name) else str(value)
        lines.append(f"{variables_of(name)[0]} = {shown}  # {field.description}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """`show` prints the settings and gives 0; 1 when the environment is wrong, 2 when the command is not known."""
    if list(argv) not in (["show"], ["show", "--redact"]):
        print("python -m serverless.settings show", file=sys.stderr)
        return 2
    try:
        print(describe(load(os.environ)))
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
