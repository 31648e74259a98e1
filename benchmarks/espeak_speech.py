"""Speech in eight languages with known word times, by another voice of the program that `dtw` compares with.

That is circular: the same rules pronounce both, at the same relative lengths. It shows that word edges are carried
over from one voice to another in each language, and is a lower bound of the errors with real voices.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from benchmarks.festival_speech import KnownSpeech
from pipeline.audio import AudioChunk
from pipeline.errors import ConfigError
from serverless.timings import espeak_words
from serverless.timings.tokens import words_of
from serverless.timings.words import NotAligned

VARIANT = "m3"  # of espeak-ng's voices
TEMPO = 1.12  # played faster by this, and higher

SENTENCES = {
    "en": ("The weather was cold, so we stayed at home.", "He bought forty apples and three pears at the market."),
    "fr": (
        "Il faisait froid, nous sommes restés à la maison.",
        "Il a acheté quarante pommes et trois poires au marché.",
    ),
    "de": ("Das Wetter war kalt, also blieben wir zu Hause.", "Er kaufte vierzig Äpfel und drei Birnen auf dem Markt."),
    "es": ("Hacía mucho frío, así que nos quedamos en casa.", "Compró cuarenta manzanas y tres peras en el mercado."),
    "it": ("Faceva freddo, quindi siamo rimasti a casa.", "Ha comprato quaranta mele e tre pere al mercato."),
    "ja": ("今日は寒いですから、家にいました。", "市場でりんごを四十個と梨を三個買いました。"),
    "zh": ("今天天气很冷，所以我们在家。", "他在市场买了四十个苹果和三个梨。"),
    "nl": ("Het was koud weer, dus bleven we thuis.", "Hij kocht veertig appels en drie peren op de markt."),
}


def speak(language: str) -> list[KnownSpeech]:
    """The sentences of one language. `ConfigError` when espeak-ng cannot say them."""
    return [_one(text, language) for text in SENTENCES[language]]


def _one(text: str, language: str) -> KnownSpeech:
    try:
        said = espeak_words.readings(words_of(text, language), language)
        audio, edges = espeak_words.speak([word for words in said for word in words], language, variant=VARIANT)
    except NotAligned as error:
        raise ConfigError(f"espeak-ng cannot speak the language {language}: {error}") from error
    faster = AudioChunk(audio.samples, round(audio.sample_rate * TEMPO))
    ends = np.cumsum([0, *map(len, said)])
    at = [edge / faster.sample_rate for edge in edges]
    times = tuple((at[first], at[end]) for first, end in pairwise(ends))
    return KnownSpeech(f"espeak-ng {language}+{VARIANT}", text, faster, times)
