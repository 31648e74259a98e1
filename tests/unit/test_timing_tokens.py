"""Words as they are written, how they are said, and the language they are in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless.timings.arpabet import phones_of
from serverless.timings.spoken import spoken_words
from serverless.timings.tokens import is_spoken, joined, language_of, words_of


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("Hello, world!", "en", ["Hello,", "world!"]),
        ("Wait — what? ...", "en", ["Wait —", "what? ..."]),
        ("( maybe ) “ so ”", "en", ["(maybe )", "“so ”"]),
        ("... and then", "en", ["... and", "then"]),
        ("Qu'est-ce que c'est ?", "fr", ["Qu'est-ce", "que", "c'est ?"]),
        ("50 % & more 😀", "en", ["50", "%", "&", "more 😀"]),
        ("今日は天気がいいですね。", "ja", ["今日", "は", "天気", "が", "いいです", "ね。"]),
        ("「東京」は食べませんでした！", "ja", ["「東京」", "は", "食べませんでした！"]),
        ("我们今天去公园吧。好吗？", "zh", ["我们", "今天", "去", "公园", "吧。", "好", "吗？"]),
        ("我爱 Python 3 编程", "zh", ["我", "爱", "Python", "3", "编程"]),
        ("— … !", "en", []),
        ("", "en", []),
    ],
)
def test_words_keep_their_punctuation(text: str, language: str, words: list[str]) -> None:
    assert words_of(text, language) == words


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["en", "fr", "zh", "ja"]))
def test_no_character_of_a_text_that_can_be_said_is_lost(text: str, language: str) -> None:
    words = words_of(text, language)
    assert all(is_spoken(word) for word in words)
    if words:
        assert "".join("".join(words).split()) == "".join(text.split())
    else:
        assert not is_spoken("".join(text.split()))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The weather is nice today, isn't it?", "en"),
        ("Il fait beau aujourd'hui, n'est-ce pas ?", "fr"),
        ("Das Wetter ist heute schön, nicht wahr?", "de"),
        ("Hoy hace buen tiempo, ¿verdad?", "es"),
        ("Oggi il tempo è bello, non è vero?", "it"),
        ("Het is vandaag mooi weer, nietwaar?", "nl"),
        ("今日はいい天気ですね。", "ja"),
        ("ﾄｳｷｮｳ", "ja"),
        ("今天天气很好。", "zh"),
        ("他说 hello 了", "zh"),
        ("42", "en"),
        ("OK", "en"),
        ("Hola 你", "en"),
    ],
)
def test_the_language_is_found_by_script_and_by_letters(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("tokens", "language", "said"),
    [
        (["I", "have", "42", "cats."], "en", [("I",), ("have",), ("forty", "two"), ("cats",)]),
        (["In", "1998,", "yes"], "en", [("In",), ("nineteen", "ninety", "eight"), ("yes",)]),
        (["It", "costs", "$5", "million."], "en", [("It",), ("costs",), ("five",), ("million", "dollars")]),
        (["50", "%", "of", "it"], "en", [("fifty",), ("percent",), ("of",), ("it",)]),
        (["Hi", "&", "bye"], "en", [("Hi",), ("and",), ("bye",)]),
        (["Dr.", "Smith"], "en", [("Doctor",), ("Smith",)]),
        (["Well-known", "don't"], "en", [("Well", "known"), ("don't",)]),
        (["Es", "sind", "42."], "de", [("Es",), ("sind",), ("zweiundvierzig",)]),
        (["quatre-vingts", "42"], "fr", [("quatre", "vingts"), ("quarante", "deux")]),
        (["😀", "ok"], "en", [(), ("ok",)]),
        ([], "en", []),
    ],
)
def test_each_written_word_gets_the_words_that_are_said_for_it(
    tokens: list[str], language: str, said: list[tuple[str, ...]]
) -> None:
    found = [tuple(word.rstrip(".") for word in words) for words in spoken_words(tokens, language)]
    assert found == said


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["$5", "million", "50", "%", "&", "a", "1998", "3.14", "x-y", "=", "10:30", "1,000"])))
def test_every_reading_is_given_to_some_word(tokens: list[str]) -> None:
    from pipeline.sentences import speakable

    said = spoken_words(tokens, "en")
    assert len(said) == len(tokens)
    flat = "".join(word for words in said for word in words)
    expected = "".join(char for char in speakable(" ".join(tokens), "en") if char.isalnum())
    assert "".join(char for char in flat if char.isalnum()) == expected


def test_a_space_stands_between_latin_words_only() -> None:
    assert [joined(*pair) for pair in (("a", "b"), ("好", "吗"), ("好", "a"), ("。", "好"))] == [" ", "", "", ""]


@pytest.mark.parametrize(
    ("ipa", "phones"),
    [
        ("zˈɑːɹkɑːn", "Z AA R K AA N"),
        ("kwˈɪksbi", "K W IH K S B IY"),
        ("tʃˈaɪldhʊd", "CH AY L D HH UH D"),
        ("bˈɜːd", "B ER D"),
        ("wˈɔːɾɚ", "W AO T ER"),
        ("lˈɪɾəl", "L IH T AH L"),
        ("?", ""),
    ],
)
def test_ipa_becomes_the_phones_of_the_acoustic_model(ipa: str, phones: str) -> None:
    assert phones_of(ipa) == phones
