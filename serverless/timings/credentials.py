"""Credentials of a Google service account, looked at without the network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import ConfigError

MAX_BYTES = 64 * 1024
_NEEDED = ("type", "project_id", "private_key", "client_email")


@dataclass(frozen=True, slots=True)
class GoogleCredentials:
    """A service account; `info` is what its key file holds and is never shown."""

    project_id: str
    client_email: str = field(repr=False)
    info: dict[str, Any] = field(repr=False, compare=False)


def read_credentials(
    *, json_text: str | None = None, file: Path | None = None, project: str | None = None
) -> GoogleCredentials | None:
    """The account from the text of a key file, else from a key file; None when neither is given.

    `project` replaces the account's own project. `ConfigError` says what is wrong and shows nothing of the content.
    """
    if json_text is not None and json_text.strip():
        source, text = "GOOGLE_CREDENTIALS_JSON", json_text
    elif file is not None:
        source = "the file of GOOGLE_APPLICATION_CREDENTIALS"
        try:
            with file.open("rb") as opened:
                text = opened.read(MAX_BYTES + 1).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} cannot be read") from error
    else:
        return None
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source} is too long for a service account's key")
    try:
        info = json.loads(text)
    except (ValueError, RecursionError):
        hint = "; it looks like a path: set GOOGLE_APPLICATION_CREDENTIALS to it" if _is_path(text) else ""
        raise ConfigError(f"{source} is not JSON{hint}") from None
    return _checked(info, source, project)


def _is_path(text: str) -> bool:
    return text.strip().startswith(("/", "./", "~")) or text.strip().endswith(".json")


def _checked(info: object, source: str, project: str | None) -> GoogleCredentials:
    if not isinstance(info, dict):
        raise ConfigError(f"{source} is not a JSON object")
    missing = [name for name in _NEEDED if not isinstance(info.get(name), str) or not info[name].strip()]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)}")
    if info["type"] != "service_account":
        raise ConfigError(f"{source} is not the key of a service account: its type must be service_account")
    if "@" not in info["client_email"]:
        raise ConfigError(f"client_email in {source} is not an address")
    token_uri = info.setdefault("token_uri", "https://oauth2.googleapis.com/token")
    if not isinstance(token_uri, str) or urlsplit(token_uri).scheme != "https":
        raise ConfigError(f"token_uri in {source} is not an https URL")
    _check_key(info["private_key"], source)
    return GoogleCredentials(project or info["project_id"], info["client_email"], info)


def _check_key(pem: str, source: str) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        load_pem_private_key(pem.encode(), password=None)
    except Exception:  # the library raises several kinds, and their messages may quote the key
        hint = "; its line breaks are written as \\\\n" if "\\n" in pem else ""
        raise ConfigError(f"private_key in {source} is not a PEM private key{hint}") from None
