"""Write what the stock voices of an engine sound like, for `pipeline.matching`.

python -m scripts.stock_speakers            # of the engine that the settings name
"""

from __future__ import annotations

import asyncio

from pipeline.engines.base import Tts, create_engine
from pipeline.matching import SHIPPED, listen, packed, table_name
from pipeline.models import locate
from pipeline.speaker import MODEL_ID, SpeakerEncoder
from pipeline.turn import Waits
from settings import Settings

# Nobody waits for an answer here, and the machine may be busy.
PATIENT = Waits(asr_s=600, first_token_s=600, token_s=600, first_audio_s=600, audio_s=600)


async def _main(settings: Settings) -> None:
    tts: Tts = create_engine("tts", settings.tts.engine, settings)
    speakers = SpeakerEncoder.load(locate(settings.models.dir, MODEL_ID))
    await tts.load()
    try:
        table = await listen(tts, speakers, tts.info.voices, PATIENT)
    finally:
        await tts.close()
    path = SHIPPED / table_name(tts.info)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packed(table))
    print(f"{path.name}: {len(table)} voices")


if __name__ == "__main__":
    asyncio.run(_main(Settings()))
