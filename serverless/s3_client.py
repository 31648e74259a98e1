"""The boto3 client for S3 and what speaks its language: how it signs, tries again, waits and checks."""

from __future__ import annotations

import logging
from typing import Any, Final

from pipeline.errors import ConfigError
from serverless.s3_errors import s3_errors

CONNECT_TIMEOUT_S: Final = 5


def make_client(
    *,
    region: str,
    endpoint_url: str | None,
    credentials: tuple[str | None, str | None, str | None],
    request_timeout_s: float,
    max_attempts: int,
    signing: bool,
) -> Any:
    """A client; `credentials` are key id, secret and session token, and without a key id boto3's own chain is asked.

    The one that signs URLs adds no checksums: whoever uses the URL would have to send them. `ConfigError` for an
    endpoint that is no address, `StorageError` for the rest.
    """
    from botocore.config import Config

    checksums = "when_required" if endpoint_url or signing else "when_supported"
    config = Config(
        signature_version="s3v4",
        # By "auto" a signed URL names no region, and most regions refuse what is not sent to them.
        s3={"addressing_style": "path" if endpoint_url else "virtual"},
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=request_timeout_s,
        max_pool_connections=32,
        tcp_keepalive=True,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    key_id, secret, token = credentials
    try:
        with s3_errors("client"):
            return _session().client(
                "s3",
                region_name=region,
                endpoint_url=endpoint_url,
                aws_access_key_id=key_id,
                aws_secret_access_key=secret,
                aws_session_token=token if key_id else None,
                config=config,
            )
    except ValueError:
        raise ConfigError("AWS_ENDPOINT_URL is not an address") from None


_loaders: list[Any] = []


def _session() -> Any:
    """A session of its own (credentials are kept in it), with descriptions of S3 that are read once: 0.15 s each."""
    import boto3
    import botocore.session

    for name in ("botocore", "boto3", "s3transfer", "urllib3"):  # at DEBUG they log requests with what signs them
        logging.getLogger(name).setLevel(logging.INFO)
    session = botocore.session.get_session()
    if _loaders:
        session.register_component("data_loader", _loaders[0])
    else:
        _loaders.append(session.get_component("data_loader"))
    return boto3.session.Session(botocore_session=session)
