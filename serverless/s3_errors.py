"""What boto3 raises, told in words that help: one code and one sentence for each cause, without keys, URLs or ids.

The original error is not chained, because its text and its fields hold the endpoint, the access key id and, for a wrong
signature, everything that was signed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import structlog

from pipeline.errors import StorageError
from serverless.storage import AlreadyStored, NotStored

log = structlog.get_logger()

_CLOCK: Final = "the clock of this machine is more than 15 minutes off: S3 refuses what it signs"
_SLOW: Final = "S3 asks to slow down; the call was tried several times"
_REGION: Final = "the bucket lives in another region{where} than AWS_REGION says: set AWS_REGION to the bucket's"
# S3's own codes -> ours, the sentence, whether trying again may help.
_BY_CODE: Final[dict[str, tuple[str, str, bool]]] = {
    "NoSuchBucket": ("s3_no_bucket", "there is no bucket of this name: check S3_BUCKET and AWS_ENDPOINT_URL", False),
    "InvalidBucketName": ("s3_no_bucket", "S3_BUCKET is not a valid name of a bucket", False),
    "InvalidAccessKeyId": ("s3_bad_key_id", "S3 does not know this AWS_ACCESS_KEY_ID", False),
    "InvalidToken": ("s3_bad_token", "S3 does not accept this AWS_SESSION_TOKEN", False),
    "ExpiredToken": ("s3_bad_token", "the AWS_SESSION_TOKEN has expired: take new credentials", False),
    "SignatureDoesNotMatch": ("s3_bad_secret", "the AWS_SECRET_ACCESS_KEY does not fit the AWS_ACCESS_KEY_ID", False),
    "RequestTimeTooSkewed": ("s3_clock", _CLOCK, False),
    "RequestExpired": ("s3_clock", _CLOCK, False),
    "SlowDown": ("s3_slow_down", _SLOW, True),
    "ServiceUnavailable": ("s3_slow_down", _SLOW, True),
    "Throttling": ("s3_slow_down", _SLOW, True),
    "TooManyRequests": ("s3_slow_down", _SLOW, True),
    "RequestTimeout": ("s3_timeout", "S3 waited too long for this worker", True),
    "NotImplemented": ("s3_unsupported", "the store behind AWS_ENDPOINT_URL cannot do this", False),
    "AccessDenied": (
        "s3_forbidden",
        "S3 knows the credentials but forbids this: compare the policy with `python -m scripts.s3_setup "
        "--print-policy`, and AWS_ENDPOINT_URL with the store's documentation",
        False,
    ),
    "QuotaExceeded": ("s3_full", "the store takes no more data: its quota is used up", False),
}
_REDIRECTS: Final = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraint",
)
_BY_STATUS: Final = {403: "AccessDenied", 429: "SlowDown", 503: "SlowDown", 501: "NotImplemented"}


@contextlib.contextmanager
def s3_errors(operation: str) -> Iterator[None]:
    """Turn what botocore raises into `StorageError`; `operation` is for the log alone."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, HTTPClientError, HTTPError) as error:
        cause = error if isinstance(error, ClientError) else _cause(error)
        told = of_answer(cause.response) if isinstance(cause, ClientError) else of_connection(cause)
        if not isinstance(told, NotStored | AlreadyStored):
            status = (
                cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if isinstance(cause, ClientError)
                else None
            )
            log.warning("storage.s3_failed", operation=operation, code=told.code, status=status)
        raise told from None


def of_answer(response: dict[str, Any]) -> StorageError:
    """The error for an answer of S3 with a status of 300 and more."""
    code = str(response.get("Error", {}).get("Code", ""))
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode") or 0)
    headers = {str(name).lower(): str(value) for name, value in metadata.get("HTTPHeaders", {}).items()}
    if code in _REDIRECTS or status in (301, 307):
        region = headers.get("x-amz-bucket-region") or str(response.get("Error", {}).get("Region", ""))
        where = f" ({region})" if region.replace("-", "").isalnum() and len(region) < 32 else ""
        return StorageError(_REGION.format(where=where), code="s3_wrong_region", retryable=False)
    if code in ("NoSuchKey", "404", "NotFound") or (status == 404 and code not in _BY_CODE):
        return NotStored("there is no such object")
    if code == "PreconditionFailed" or status == 412:
        return AlreadyStored("there is such an object already")
    if code == "ConditionalRequestConflict" or status == 409:
        return StorageError("another worker writes the same object now", code="s3_conflict", retryable=True)
    known = _BY_CODE.get(code) or _BY_CODE.get(_BY_STATUS.get(status, ""))
    if known:
        return StorageError(known[1], code=known[0], retryable=known[2])
    return StorageError(f"S3 failed ({status or 'no status'})", code="s3_error", retryable=status >= 500 or not status)


def of_connection(error: BaseException) -> StorageError:
    """The error for a call that got no usable answer."""
    from botocore import exceptions as boto
    from urllib3.exceptions import HTTPError

    def told(code: str, message: str, *, retryable: bool) -> StorageError:
        return StorageError(message, code=code, retryable=retryable)

    if isinstance(error, boto.ProfileNotFound | boto.ConfigNotFound | boto.ConfigParseError):
        return told("s3_no_credentials", "AWS_PROFILE names no profile of the AWS configuration files", retryable=False)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        text = "there are no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod a role"
        return told("s3_no_credentials", text, retryable=False)
    if isinstance(error, boto.ConnectTimeoutError | boto.ReadTimeoutError):
        return told("s3_timeout", "S3 did not answer in time: check AWS_ENDPOINT_URL and the network", retryable=True)
    if isinstance(error, boto.SSLError):
        text = "the certificate of the S3 endpoint is not accepted: check AWS_ENDPOINT_URL"
        return told("s3_tls", text, retryable=False)
    if isinstance(error, boto.EndpointConnectionError | boto.ProxyConnectionError | boto.ConnectionClosedError):
        text = "the S3 endpoint cannot be reached: check AWS_ENDPOINT_URL, AWS_REGION and the network"
        return told("s3_unreachable", text, retryable=True)
    if isinstance(error, boto.InvalidRegionError | boto.NoRegionError):
        return told("s3_wrong_region", "AWS_REGION is not a region", retryable=False)
    if isinstance(error, boto.ParamValidationError):
        return told("s3_no_bucket", "S3_BUCKET is not a valid name of a bucket", retryable=False)
    # urllib3's own come through from bodies, for TLS that breaks there.
    if isinstance(
        error, boto.IncompleteReadError | boto.ResponseStreamingError | boto.FlexibleChecksumError | HTTPError
    ):
        return told("s3_cut_off", "what S3 sent broke off or was damaged", retryable=True)
    if isinstance(error, boto.HTTPClientError):
        return told("s3_unreachable", "the connection to S3 broke", retryable=True)
    return told("s3_error", "S3 failed", retryable=True)


def _cause(error: BaseException) -> BaseException:
    """What is behind boto3's own transfer errors, which keep the real one as their context only."""
    from botocore.exceptions import BotoCoreError, ClientError

    inner: BaseException | None = error.__cause__ or error.__context__
    while inner is not None and not isinstance(error, BotoCoreError):
        if isinstance(inner, ClientError | BotoCoreError):
            found: BaseException = inner
            return found
        inner = inner.__cause__ or inner.__context__
    return error
