"""A model hub as the last place to ask, through huggingface_hub: what it says of a file, and the file."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StorageError
from serverless.model_files import ModelFile
from serverless.storage import DISK_FULL


@dataclass(frozen=True, slots=True)
class HubFacts:
    """What the hub says of a file at one commit: large files have a sha256 there, small ones the id of a git object."""

    size: int
    commit: str
    sha256: str | None
    git_blob: str | None

    def is_right(self, path: Path, sha256: str) -> bool:
        """Whether a file with that sha256 is the one that the hub describes."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return sha256 == self.sha256
        return self.git_blob is None or _git_blob(path) == self.git_blob


class HubSource:
    """The hub at `endpoint` (None: huggingface_hub's own, by HF_ENDPOINT), with a token where a model needs one."""

    def __init__(self, *, token: str | None = None, endpoint: str | None = None) -> None:
        self._token: str | bool = token or False
        self._endpoint = endpoint

    def describe(self, file: ModelFile) -> HubFacts:
        """Size, commit and hash of the file; `StorageError` says why not."""
        with _told():
            from huggingface_hub import get_hf_file_metadata, hf_hub_url

            url = hf_hub_url(file.repository, file.hub_path, revision=file.hub_revision, endpoint=self._endpoint)
            found = get_hf_file_metadata(url, token=self._token, endpoint=self._endpoint)
        if found.size is None or not found.commit_hash or not found.etag:
            raise StorageError("the hub does not say what the file is")
        etag = found.etag
        sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None
        if file.sha256 is not None and sha256 not in (None, file.sha256):
            raise StorageError(f"its {file.path} is another file than the one wanted")
        if file.size not in (None, found.size):
            raise StorageError(f"its {file.path} has another size than the one wanted")
        git_blob = etag if re.fullmatch(r"[0-9a-f]{40}", etag) else None
        return HubFacts(found.size, found.commit_hash, file.sha256 or sha256, git_blob)

    def download(self, file: ModelFile, facts: HubFacts, directory: Path) -> Path:
        """The file at the commit of `facts`, somewhere under `directory`; goes on with what is there."""
        with _told():
            from huggingface_hub import hf_hub_download
            from huggingface_hub.utils.tqdm import disable_progress_bars

            disable_progress_bars()
            got = hf_hub_download(
                file.repository,
                file.hub_path,
                revision=facts.commit,
                local_dir=directory / file.repository.replace("/", "--"),
                token=self._token,
                endpoint=self._endpoint,
            )
        return Path(str(got))


@contextmanager
def _told() -> Iterator[None]:
    """What the hub's client raises as `StorageError`; its own texts hold URLs."""
    import httpx
    from huggingface_hub import errors

    # Both write URLs into the log, of which some are signed.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        yield
    except (errors.GatedRepoError, errors.RepositoryNotFoundError):
        raise StorageError("the hub refuses the file: set HF_TOKEN of an account that accepted its terms") from None
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        text = "the hub cannot be reached" if isinstance(error, errors.LocalEntryNotFoundError) else "it is not there"
        raise StorageError(text) from None
    except errors.OfflineModeIsEnabled:
        raise StorageError("HF_HUB_OFFLINE forbids to ask it") from None
    except errors.HfHubHTTPError as error:
        raise StorageError(f"the hub answered {error.response.status_code}") from None
    except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:  # hf-xet raises RuntimeError
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise StorageError("the disk is full", code="no_space", retryable=False) from None
        raise StorageError(f"the hub cannot be reached ({type(error).__name__})") from None


def _git_blob(path: Path) -> str:
    """The id that git gives the file's bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
