"""The bucket's set-up as a command, against real servers on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from scripts.s3_setup import main, policy
from tests.support.s3_servers import S3Server

THEIRS = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 90}}


@pytest.fixture
def bucket(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in moto.environ().items():
        monkeypatch.setenv(name, value)
    yield moto.client()
    moto.client().delete_bucket_lifecycle(Bucket=moto.bucket)
    moto.client().delete_bucket_cors(Bucket=moto.bucket)
    moto.client().delete_public_access_block(Bucket=moto.bucket)


def rules(client: Any) -> dict[str, Any]:
    found = client.get_bucket_lifecycle_configuration(Bucket="voice-bucket")["Rules"]
    return {rule["ID"]: rule for rule in found}


def test_results_expire_models_and_voices_stay(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--days", "3", "--origin", "https://pages.example", "--apply"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "lifecycle: changed",
        "public access block: changed",
        "cors: changed",
    ]
    found = rules(bucket)
    assert {name: rule.get("Expiration", {}).get("Days") for name, rule in found.items()} == {
        "voicepod-output": 3,
        "voicepod-timings": 3,
        "voicepod-jobs": 3,
        "voicepod-uploads": 3,
        "voicepod-healthz": 3,
        "voicepod-voices": None,
        "voicepod-models": None,
    }
    assert all(rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1} for rule in found.values())
    (cors,) = bucket.get_bucket_cors(Bucket="voice-bucket")["CORSRules"]
    assert cors["AllowedOrigins"] == ["https://pages.example"]
    block = bucket.get_public_access_block(Bucket="voice-bucket")["PublicAccessBlockConfiguration"]
    assert set(block.values()) == {True}
    assert len(block) == 4


def test_a_second_run_changes_nothing_and_another_number_of_days_changes_only_that(
    bucket: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--origin", "https://pages.example", "--apply"]
    main(arguments)
    capsys.readouterr()
    assert main(arguments) == 0
    assert all(line.endswith("as it should be") for line in capsys.readouterr().out.splitlines())
    main([*arguments, "--days", "30"])
    assert capsys.readouterr().out.splitlines()[0] == "lifecycle: changed"
    assert len(rules(bucket)) == 7
    assert rules(bucket)["voicepod-jobs"]["Expiration"] == {"Days": 30}


def test_rules_of_others_stay(bucket: Any) -> None:
    bucket.put_bucket_lifecycle_configuration(Bucket="voice-bucket", LifecycleConfiguration={"Rules": [THEIRS]})
    theirs = {"AllowedOrigins": ["https://other.example"], "AllowedMethods": ["GET"]}
    bucket.put_bucket_cors(Bucket="voice-bucket", CORSConfiguration={"CORSRules": [theirs]})
    for _ in range(2):
        main(["--origin", "https://pages.example", "--apply"])
    assert rules(bucket)["theirs"]["Expiration"] == {"Days": 90}
    assert len(rules(bucket)) == 8
    found = bucket.get_bucket_cors(Bucket="voice-bucket")["CORSRules"]
    assert [rule["AllowedOrigins"] for rule in found] == [["https://other.example"], ["https://pages.example"]]


def test_a_rule_of_others_that_ends_on_a_day_stays(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = {**THEIRS, "Expiration": {"Date": datetime(2030, 1, 1, tzinfo=UTC)}}
    bucket.put_bucket_lifecycle_configuration(Bucket="voice-bucket", LifecycleConfiguration={"Rules": [theirs]})
    for _ in range(2):
        assert main(["--apply"]) == 0
    assert "lifecycle: as it should be" in capsys.readouterr().out
    assert rules(bucket)["theirs"]["Expiration"] == theirs["Expiration"]


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_without_apply_nothing_is_changed(
    bucket: Any, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 0
    assert "lifecycle: would be changed" in capsys.readouterr().out
    with pytest.raises(bucket.exceptions.ClientError):
        rules(bucket)


def test_a_store_that_cannot_do_it_is_told_of(
    nanio: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in nanio.environ().items():
        monkeypatch.setenv(name, value)
    assert main(["--apply"]) == 1
    told = capsys.readouterr()
    assert "lifecycle: failed:" in told.err
    assert nanio.endpoint_url not in told.err


def test_a_worker_gets_the_least_rights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bucket", "b", "--print-policy"]) == 0
    assert json.loads(capsys.readouterr().out) == policy("b")
    statements = policy("b")["Statement"]
    assert statements[0]["Action"] == ["s3:ListBucket"]
    resources = sorted(each for statement in statements[1:] for each in statement["Resource"])
    assert resources == [
        f"arn:aws:s3:::b/{prefix}/*"
        for prefix in ("healthz", "jobs", "models", "output", "timings", "uploads", "voices")
    ]
    actions = {action for statement in statements for action in statement["Action"]}
    assert actions == {
        "s3:ListBucket",
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
    }


@pytest.mark.parametrize("arguments", [["--days", "0"], ["--apply", "--dry-run"], ["--days", "x"]])
def test_wrong_arguments_end_the_command(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--bucket", "b", *arguments])
