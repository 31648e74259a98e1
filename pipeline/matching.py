"""The stock voice that is most like a recording: what engines that cannot clone offer instead, and no clone.

Each stock voice is heard once, saying the same text, and its vector kept in a table. The table of Kokoro comes with
the program (`python -m scripts.stock_speakers` makes it); others are made at the first need and kept in a directory.
"""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from pipeline.audio import Samples, concat
from pipeline.engines.base import EngineInfo, Tts, Voice, engine_key
from pipeline.errors import InvalidInput
from pipeline.options import LANGUAGES
from pipeline.prompt import speaks
from pipeline.reading import read_aloud
from pipeline.sample_quality import Speakers
from pipeline.sentences import PieceSplitter
from pipeline.speaker import similarity
from pipeline.turn import Waits
from private_files import write_private

log = structlog.get_logger()

SHIPPED: Final = Path(__file__).parent / "engines" / "speakers"
SAMPLE_RATE: Final = 16_000
# Seven seconds or so: several stretches of the encoder.
TEXTS: Final[Mapping[str, str]] = {
    "en": "The morning was quiet and the street was still wet from the rain. She opened the window, looked at the old "
    "trees along the river, and thought about the long way home.",
    "de": "Der Morgen war ruhig und die Straße noch nass vom Regen. Sie öffnete das Fenster, sah auf die alten Bäume "
    "am Fluss und dachte an den langen Weg nach Hause.",
    "es": "La mañana era tranquila y la calle seguía mojada por la lluvia. Ella abrió la ventana, miró los viejos "
    "árboles junto al río y pensó en el largo camino a casa.",
    "fr": "Le matin était calme et la rue encore mouillée par la pluie. Elle ouvrit la fenêtre, regarda les vieux "
    "arbres au bord de la rivière et pensa au long chemin du retour.",
    "it": "La mattina era tranquilla e la strada ancora bagnata dalla pioggia. Aprì la finestra, guardò i vecchi "
    "alberi lungo il fiume e pensò alla lunga strada verso casa.",
}

Table = Mapping[str, Samples]  # voice id -> float32 (n,) of length 1


@dataclass(frozen=True, slots=True)
class Match:
    """The nearest stock voice, and the cosine of the two vectors: 1 is the same voice."""

    voice: Voice
    similarity: float


def nearest(sample: Samples, table: Table, voices: Iterable[Voice], language: str) -> Match:
    """Of the voices that speak `language`, the one most like `sample`. `InvalidInput` when none speaks it."""
    known = [voice for voice in voices if speaks(voice, language) and voice.id in table]
    if not known:
        name = LANGUAGES.get(language, language)
        raise InvalidInput(
            f"this server has no voice that speaks {name}, so none can be chosen for this recording",
            code="no_voice_for_language",
            param="language",
        )
    return max(
        (Match(voice, similarity(sample, table[voice.id])) for voice in known), key=lambda found: found.similarity
    )


class StockTable:
    """The table of one engine's stock voices, from the program, from `directory`, or by listening to them once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._making = asyncio.Lock()
        self._tables: dict[str, Table] = {}

    async def of(self, tts: Tts, speakers: Speakers, waits: Waits) -> Table:
        """All stock voices of the loaded engine. The first call may take some seconds for each voice."""
        info = tts.info
        key = table_name(info)
        wanted = {voice.id: voice for voice in info.voices}
        async with self._making:
            known = self._tables.get(key)
            if known is None:
                known = await asyncio.to_thread(lambda: {**_read(self._directory / key), **_read(SHIPPED / key)})
            if missing := [voice for name, voice in wanted.items() if name not in known]:
                log.info("voices.compared", engine=info.name, n_voices=len(missing))
                known = {**known, **await listen(tts, speakers, missing, waits)}
                await asyncio.to_thread(_keep, self._directory / key, known)
            self._tables[key] = known
        return known


def table_name(info: EngineInfo) -> str:
    """The file of an engine's table."""
    return f"{engine_key(info)}.npz"


async def listen(tts: Tts, speakers: Speakers, voices: Iterable[Voice], waits: Waits) -> dict[str, Samples]:
    """Let each voice speak, and give what it sounds like."""
    found = {}
    for voice in voices:
        splitter = PieceSplitter(language=voice.language, first_clause_min_chars=40, piece_max_chars=200)
        text = TEXTS.get(voice.language, TEXTS["en"])
        chunks = read_aloud(text, tts=tts, voice=voice, splitter=splitter, sample_rate=SAMPLE_RATE, waits=waits)
        async with aclosing(chunks):
            audio = concat([chunk async for chunk in chunks], SAMPLE_RATE)
        found[voice.id] = await asyncio.to_thread(speakers.embed, audio)
    return found


def packed(table: Table) -> bytes:
    """The table as a file: numpy's npz with half-precision vectors, 512 bytes a voice."""
    buffer = io.BytesIO()
    names = sorted(table)
    np.savez(buffer, ids=np.array(names), vectors=np.stack([table[name] for name in names]).astype(np.float16))
    return buffer.getvalue()


def _read(path: Path) -> dict[str, Samples]:
    """A table's file; empty when there is none or it cannot be understood."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            ids, vectors = file["ids"], file["vectors"].astype(np.float32)
        if ids.ndim != 1 or vectors.ndim != 2 or len(ids) != len(vectors) or not np.isfinite(vectors).all():
            return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return {str(name): unit for name, unit in zip(ids, units, strict=True)}


def _keep(path: Path, table: Table) -> None:
    """Write it for the next start; where that cannot be it is made again then."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, packed(table))
    except OSError as error:
        log.warning("voices.table_not_kept", reason=error.strerror)
