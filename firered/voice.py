"""A voice to speak with: the codes of a recording and the words spoken in it, storable in a few kB.

File layout, little-endian: 8 bytes magic, uint16 version, uint32 length of the header, the header (UTF-8 JSON: name,
transcript, n_frames), n_frames x 16 int16 codes, and the SHA-256 of everything before it. No pickle: a foreign or
damaged file is an InputError and nothing of it is run.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firered.errors import InputError

FRAME_SECONDS = 0.08  # 16 codes stand for 80 ms
N_CODEBOOKS = 16
PUBLISHED_CODEBOOK_SIZE = 2048

# One minute. The context is bounded by 2300 audio frames and 3100 rows (the published fine-tuning loader's limits), so
# that leaves two thirds of it to the conversation.
MAX_VOICE_FRAMES = 750
# Continuation replaces the last 2 frames of the recording (upstream fireredtts2.py:223), so a third one must remain.
MIN_VOICE_FRAMES = 3
# Nobody says more than this in a minute: the fastest of 17 languages has about 18 letters a second (IReST, 2012).
MAX_TRANSCRIPT_CHARACTERS = 1200
MAX_NAME_CHARACTERS = 200

_MAGIC = b"FR2VOICE"
_VERSION = 1
_PREFIX = struct.Struct("<8sHI")
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, eq=False)
class VoicePrompt:
    """A recording as codes, (n_frames, 16) int16, with its transcript. Read-only; equal when all fields are equal.

    `transcript` is cleaned text. Raises InputError for codes of another shape or range, a transcript without words, or
    a recording over one minute.
    """

    codes: npt.NDArray[np.int16]
    transcript: str
    name: str

    def __post_init__(self) -> None:
        _check_transcript(self.transcript, self.name)
        object.__setattr__(self, "codes", _own_codes(np.asarray(self.codes)))

    @property
    def n_frames(self) -> int:
        """Frames of 80 ms."""
        return len(self.codes)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.n_frames * FRAME_SECONDS

    @property
    def digest(self) -> bytes:
        """SHA-256 over codes, transcript and name: a key for caches."""
        return self.to_bytes()[-_DIGEST_BYTES:]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VoicePrompt) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.digest)

    def check_codebook_size(self, codebook_size: int) -> None:
        """Raises InputError when a code has no entry in codebooks of this size: the voice is another codec's."""
        if int(self.codes.max()) >= codebook_size:
            raise InputError(f"this voice was made with another codec: code {self.codes.max()} of {codebook_size}")

    def to_bytes(self) -> bytes:
        """The file: about 400 bytes for each second, and the transcript."""
        fields = {"name": self.name, "transcript": self.transcript, "n_frames": self.n_frames}
        header = json.dumps(fields, separators=(",", ":")).encode("ascii")
        body = _PREFIX.pack(_MAGIC, _VERSION, len(header)) + header + self.codes.tobytes()
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, codebook_size: int = PUBLISHED_CODEBOOK_SIZE) -> VoicePrompt:
        """The voice in a file's bytes; InputError when they are damaged, foreign, or of another version or codec."""
        body = _checked_body(data)
        try:
            voice = cls(*_read_fields(body))
        except (KeyError, TypeError, ValueError, RecursionError) as error:  # a bad header with a right checksum
            raise InputError("this voice file is damaged") from error
        voice.check_codebook_size(codebook_size)
        return voice


def _check_transcript(transcript: str, name: str) -> None:
    if not any(character.isalnum() for character in transcript):
        raise InputError("a voice needs the words that are spoken in its recording")
    if len(transcript) > MAX_TRANSCRIPT_CHARACTERS or len(name) > MAX_NAME_CHARACTERS:
        at_most = f"{MAX_TRANSCRIPT_CHARACTERS} characters, its name {MAX_NAME_CHARACTERS}"
        raise InputError(f"a voice's transcript has at most {at_most}")
    try:
        (transcript + name).encode()
    except UnicodeEncodeError as error:
        raise InputError("the voice's transcript or name holds half of a surrogate pair") from error


def _own_codes(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.int16]:
    """A read-only int16 copy of codes that are in order."""
    if codes.ndim != 2 or codes.shape[1] != N_CODEBOOKS or not np.issubdtype(codes.dtype, np.integer):
        expected = f"whole numbers of shape (n_frames, {N_CODEBOOKS})"
        raise InputError(f"voice codes must be {expected}, not {codes.dtype} {codes.shape}")
    if not MIN_VOICE_FRAMES <= len(codes) <= MAX_VOICE_FRAMES:
        raise InputError(f"a voice has {MIN_VOICE_FRAMES} to {MAX_VOICE_FRAMES} frames of 80 ms, not {len(codes)}")
    if int(codes.min()) < 0 or int(codes.max()) > np.iinfo(np.int16).max:
        raise InputError("voice codes are out of range")
    own = codes.astype("<i2", order="C", copy=True)
    own.setflags(write=False)
    return own


def _checked_body(data: bytes) -> bytes:
    """Everything before the checksum, once magic, checksum and version are right."""
    if not data.startswith(_MAGIC):
        raise InputError("this is not a voice file")
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(body) < _PREFIX.size or hashlib.sha256(body).digest() != digest:
        raise InputError("this voice file is damaged: its checksum does not fit")
    _, version, _ = _PREFIX.unpack_from(body)
    if version != _VERSION:
        raise InputError(f"this voice file has version {version}; this program reads version {_VERSION}")
    return body


def _read_fields(body: bytes) -> tuple[npt.NDArray[np.int16], str, str]:
    _, _, n_header = _PREFIX.unpack_from(body)
    start = _PREFIX.size + n_header
    header = json.loads(body[_PREFIX.size : start])
    codes = np.frombuffer(body[start:], dtype="<i2").reshape(int(header["n_frames"]), N_CODEBOOKS)
    transcript, name = header["transcript"], header["name"]
    if not (isinstance(transcript, str) and isinstance(name, str)):
        raise TypeError("transcript and name are text")
    return codes, transcript, name
