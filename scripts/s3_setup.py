"""Prepare a bucket for the serverless worker: old results expire, nothing is public, browsers may read and write.

    python -m scripts.s3_setup --bucket B                   say what would change
    python -m scripts.s3_setup --bucket B --apply           change it
    python -m scripts.s3_setup --bucket B --print-policy    the rights that a worker needs, as an IAM policy

The credentials and AWS_REGION, AWS_ENDPOINT_URL come from the environment; they have to be an administrator's (the
worker's own cannot do this). Rules of others in the bucket stay as they are; running it twice changes nothing more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from pipeline.errors import StorageError, VoicepodError
from serverless import keys
from serverless.s3 import S3Storage
from serverless.s3_errors import s3_errors
from serverless.storage import NotStored

RULE_PREFIX: Final = "voicepod-"
KEPT: Final = (keys.VOICES, keys.MODELS)
_READ, _WRITE, _DELETE = "s3:GetObject", "s3:PutObject", "s3:DeleteObject"
_PARTS: Final = ("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
RIGHTS: Final[dict[str, tuple[str, ...]]] = {
    keys.VOICES: (_READ, _WRITE, _DELETE, *_PARTS),
    keys.OUTPUT: (_READ, _WRITE, *_PARTS),
    keys.TIMINGS: (_READ, _WRITE, *_PARTS),
    keys.JOBS: (_READ, _WRITE, _DELETE),
    keys.UPLOADS: (_READ, _WRITE, _DELETE, *_PARTS),
    keys.HEALTHZ: (_READ, _WRITE, _DELETE),
    keys.MODELS: (_READ, _WRITE, _DELETE, *_PARTS),
}
"""What a worker does below each prefix."""


def policy(bucket: str) -> dict[str, Any]:
    """The least rights that a worker needs, as an IAM policy.

    Listing is not bound to prefixes: without it S3 answers 403 instead of 404 for an object that is not there.
    """
    arn = f"arn:aws:s3:::{bucket}"
    by_rights: dict[tuple[str, ...], list[str]] = {}
    for prefix, rights in RIGHTS.items():
        by_rights.setdefault(rights, []).append(f"{arn}/{prefix}*")
    names = iter(range(1, len(by_rights) + 1))
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Sid": "VoicepodList", "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [arn]},
            *(
                {"Sid": f"VoicepodObjects{next(names)}", "Effect": "Allow", "Action": list(rights), "Resource": found}
                for rights, found in by_rights.items()
            ),
        ],
    }


def lifecycle(rules: Sequence[dict[str, Any]], days: int) -> list[dict[str, Any]]:
    """The bucket's rules with ours: results expire after `days`, uploads that broke off after one day."""
    ours = []
    for prefix in (*keys.TEMPORARY, *KEPT):
        rule: dict[str, Any] = {
            "ID": RULE_PREFIX + prefix.rstrip("/"),
            "Status": "Enabled",
            "Filter": {"Prefix": prefix},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        }
        if prefix in keys.TEMPORARY:
            rule["Expiration"] = {"Days": days}
        ours.append(rule)
    return [*(rule for rule in rules if not str(rule.get("ID", "")).startswith(RULE_PREFIX)), *ours]


def cross_origin(rules: Sequence[dict[str, Any]], origins: Sequence[str]) -> list[dict[str, Any]]:
    """The bucket's CORS rules with ours, which lets pages of `origins` use signed URLs."""
    ours = {
        "ID": RULE_PREFIX + "pages",
        "AllowedOrigins": list(origins),
        "AllowedMethods": ["GET", "HEAD", "PUT"],
        "AllowedHeaders": ["content-type", "range"],
        "ExposeHeaders": ["ETag", "Content-Length", "Content-Range", "Accept-Ranges"],
        "MaxAgeSeconds": 3600,
    }
    return [*(rule for rule in rules if rule.get("ID") != ours["ID"]), ours]


BLOCKED: Final = dict.fromkeys(
    ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
)


class Setup:
    """The three settings of one bucket; each step gives a line for people."""

    def __init__(self, storage: S3Storage, *, apply: bool) -> None:
        self._client, self._bucket, self._apply = storage.client(), storage.bucket, apply

    def lifecycle(self, days: int) -> str:
        """Old results expire."""
        now = self._now(lambda: self._client.get_bucket_lifecycle_configuration(Bucket=self._bucket)["Rules"])
        wanted = lifecycle(now, days)
        return self._step(
            "lifecycle",
            _sorted(now) != _sorted(wanted),
            lambda: self._client.put_bucket_lifecycle_configuration(
                Bucket=self._bucket, LifecycleConfiguration={"Rules": wanted}
            ),
        )

    def cross_origin(self, origins: Sequence[str]) -> str:
        """Pages may use signed URLs."""
        now = self._now(lambda: self._client.get_bucket_cors(Bucket=self._bucket)["CORSRules"])
        wanted = cross_origin(now, origins)
        return self._step(
            "cors",
            _sorted(now) != _sorted(wanted),
            lambda: self._client.put_bucket_cors(Bucket=self._bucket, CORSConfiguration={"CORSRules": wanted}),
        )

    def block_public(self) -> str:
        """No object can be made public."""
        now = self._now(
            lambda: self._client.get_public_access_block(Bucket=self._bucket)["PublicAccessBlockConfiguration"]
        )
        return self._step(
            "public access block",
            now != BLOCKED,
            lambda: self._client.put_public_access_block(Bucket=self._bucket, PublicAccessBlockConfiguration=BLOCKED),
        )

    def _now(self, read: Callable[[], Any]) -> Any:
        """What is set; nothing where nothing was ever set."""
        try:
            with s3_errors("setup"):
                return read()
        except NotStored:
            return []
        except KeyError:  # the answer is to another question
            raise StorageError("the store behind AWS_ENDPOINT_URL cannot do this", code="s3_unsupported") from None

    def _step(self, name: str, differs: bool, change: Callable[[], Any]) -> str:
        if not differs:
            return f"{name}: as it should be"
        if not self._apply:
            return f"{name}: would be changed"
        with s3_errors("setup"):
            change()
        return f"{name}: changed"


def _sorted(rules: Sequence[dict[str, Any]]) -> list[str]:
    """Rules in an order and a form of their own: stores give them back in another one."""
    return sorted(json.dumps({k: v for k, v in rule.items() if v != []}, sort_keys=True, default=str) for rule in rules)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when all is set or could be, 1 when something failed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.s3_setup", description=__doc__.split("\n")[0])
    parser.add_argument("--bucket", default=os.environ.get("S3_BUCKET"), help="the bucket (default: S3_BUCKET)")
    parser.add_argument("--days", type=int, default=7, help="days after which results expire (default: 7)")
    parser.add_argument("--origin", action="append", default=[], help="a page that may use signed URLs; repeatable")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--apply", action="store_true", help="change the bucket")
    mode.add_argument("--dry-run", action="store_true", help="only say what would change (the default)")
    mode.add_argument("--print-policy", action="store_true", help="print the IAM policy of a worker and end")
    options = parser.parse_args(arguments)
    if not options.bucket:
        parser.error("give --bucket, or set S3_BUCKET")
    if not 1 <= options.days <= 3650:
        parser.error("--days is a number from 1 to 3650")
    if options.print_policy:
        print(json.dumps(policy(options.bucket), indent=2))
        return 0
    try:
        storage = S3Storage(
            bucket=options.bucket,
            region=os.environ.get("AWS_REGION") or "us-east-1",
            endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
        )
        setup = Setup(storage, apply=options.apply)
    except VoicepodError as error:
        print(error.message, file=sys.stderr)
        return 1
    steps: list[tuple[str, Callable[[], str]]] = [
        ("lifecycle", lambda: setup.lifecycle(options.days)),
        ("public access block", setup.block_public),
    ]
    if options.origin:
        steps.append(("cors", lambda: setup.cross_origin(options.origin)))
    failed = False
    for name, step in steps:
        try:
            print(step())
        except StorageError as error:
            failed = True
            print(f"{name}: failed: {error.message} ({error.code})", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
