"""Credentials for Google are checked without the network, and what is wrong is said without showing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pipeline.errors import ConfigError
from serverless.timings import read_credentials


@pytest.fixture(scope="module")
def info() -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {"type": "service_account", "project_id": "p-1", "private_key": pem, "client_email": "a@p-1.example"}


def test_credentials_come_from_text_or_from_a_file(info: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text(json.dumps(info))
    for found in (read_credentials(json_text=json.dumps(info)), read_credentials(file=file)):
        assert found is not None
        assert (found.project_id, found.client_email) == ("p-1", "a@p-1.example")
        assert found.info["token_uri"] == "https://oauth2.googleapis.com/token"
    both = read_credentials(json_text=json.dumps(info | {"project_id": "p-2"}), file=file)
    assert both is not None
    assert both.project_id == "p-2"


def test_another_project_may_be_named(info: dict[str, Any]) -> None:
    found = read_credentials(json_text=json.dumps(info), project="billing")
    assert found is not None
    assert found.project_id == "billing"


def test_without_any_there_are_none() -> None:
    assert read_credentials() is None
    assert read_credentials(json_text="  \n") is None


def test_nothing_of_the_key_is_shown(info: dict[str, Any]) -> None:
    shown = repr(read_credentials(json_text=json.dumps(info)))
    assert "PRIVATE" not in shown
    assert "example" not in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "authorized_user"}, "type must be service_account"),
        ({"project_id": ""}, "lacks project_id"),
        ({"private_key": None, "client_email": 3}, "lacks private_key, client_email"),
        ({"private_key": "secret-key-text"}, "is not a PEM private key"),
        ({"private_key": "-----BEGIN\\nsecret-key-text"}, "line breaks are written as"),
        ({"client_email": "nobody"}, "is not an address"),
        ({"token_uri": "http://169.254.169.254/"}, "token_uri .* is not an https URL"),
    ],
)
def test_what_is_wrong_is_said_and_the_key_is_not(info: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_credentials(json_text=json.dumps(info | change))
    assert "secret-key-text" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/secrets/google.json", "not JSON; it looks like a path: set GOOGLE_APPLICATION_CREDENTIALS"),
        ('{"private_key": "x', "is not JSON$"),
        ("[" * 60_000, "is not JSON$"),
        ("[1]", "is not a JSON object"),
        ("x" * 70_000, "too long"),
    ],
)
def test_text_that_is_no_key_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_credentials(json_text=text)
    assert "secrets" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named_by_its_variable_only(tmp_path: Path) -> None:
    for name in ("missing.json", "binary.json"):
        if name == "binary.json":
            (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS cannot be read") as caught:
            read_credentials(file=tmp_path / name)
        assert name not in str(caught.value)
