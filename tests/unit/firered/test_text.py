"""Text rules: cleaning, splitting, estimates, languages; and where they part from upstream's on purpose."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from firered.errors import InputError
from firered.speech_time import MAX_SEGMENT_FRAMES, MAX_SEGMENT_SECONDS, estimated_seconds, max_frames
from firered.text import LANGUAGES, check_language, check_script, prepare_text, prepare_transcript
from firered.text_cleaning import clean_text
from firered.text_splitting import leading_part, split_text
from firered.tokenizer import EXPRESSION_TAGS, SPECIAL_TOKENS
from tests.support.firered_tiny import FIXTURES

QWEN_LITERALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>", "<|fim_middle|>", "<tool_call>"]


def upstream_table(name: str) -> list[Any]:
    tables: dict[str, list[Any]] = json.loads((FIXTURES / "text.json").read_text())
    return tables[name]


def words_of(text: str) -> str:
    """Every letter and digit in order: what must never be lost."""
    return "".join(character for character in text if character.isalnum())


def is_readable(text: str) -> bool:
    cleaned = clean_text(text)
    try:
        check_script(cleaned)
    except InputError:
        return False
    return any(character.isalnum() for character in cleaned)


# --- cleaning: upstream's table

# What upstream makes of these loses words, pauses or the meaning, or lets through what must not be spoken.
BETTER_THAN_UPSTREAM = {
    "line one\nline two\ttabbed": "line one line two tabbed",  # upstream: "line oneline twotabbed"
    "a\nb": "a b",  # upstream: "ab"
    "no\u00a0break": "no break",  # upstream: "nobreak"
    "[S1]Hello.": "Hello.",  # upstream speaks "S1Hello."
    "dash—em and ——two and ————four and - one": "dash, em and, two and, four and - one",  # "dashem"
    "commas,,, and dots... mixed.,.,": "commas, and dots, mixed.",  # three dots within a sentence do not end it
    "colons: and; semis： ；": "colons, and, semis,",  # upstream: "semis, ,"
    "wave~ full～ bang！ ASCII bang! question? 问？": "wave, full, bang！ ASCII bang! question? 问？",
    "*bold* text with * star": "bold text with star",  # two spaces
    "smile 😀 rocket 🚀 flag 🇫🇷 sun 🌞 heart ❤ robot 🤖 family 👨‍👩‍👧": "smile rocket flag sun heart robot family",
    "...": "",
    "?!": "",
    ".,!?": "",
    "<|text_end|> literal": "literal",  # upstream ends the text there
    "tags <|laugh|> stay": "tags stay",  # unless the caller allows tags
    "e\u0301 combining": "\u00e9 combining",  # the tokenizer composes it anyway
    "\u200bzero width": "zero width",
    "50% of $3.50 & more @ 9:30": "50% of $3.50 & more @ 9:30",  # upstream: "9,30"
}


@pytest.mark.parametrize(("text", "upstream"), upstream_table("clean_text"))
def test_cleaning_is_upstreams_but_for_a_list_of_faults(text: str, upstream: str) -> None:
    assert clean_text(text) == BETTER_THAN_UPSTREAM.get(text, upstream)
    if text in BETTER_THAN_UPSTREAM:
        assert BETTER_THAN_UPSTREAM[text] != upstream


# --- cleaning: our table


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("one\r\n\r\ntwo\u2028three\x0bfour", "one two three four"),
        ("你好\n世界，\n再见", "你好世界，再见"),
        ("中文 English 中文", "中文 English 中文"),
        ("a\x00b\x07c\x1b[31m", "abc 31m"),
        ("soft\u00adhyphen, b\u200bom\ufeff, \u202ertl", "softhyphen, bom, rtl"),
        ("private \ue000\uf8ff use", "private use"),
        ("10\u00a0000 et 1\u202f234\u202f567 habitants", "10000 et 1234567 habitants"),
        ("Bonjour\u00a0!", "Bonjour!"),
        ("sun☀️and moon", "sun and moon"),
        ("5️⃣ keys, 👍🏽 up", "5 keys, up"),
        ("你好😀世界", "你好世界"),
        ("hi 😀!", "hi!"),
        ("A → B ⇒ C ✓ done", "A B C done"),
        ("™ and № 5, 20℃, ㎏", "™ and № 5, 20℃, ㎏"),
        ("ＡＢＣ１２３ ｶﾞｷﾞ", "ABC123 ガギ"),
        ("the word(s) and (more) of foo(bar)", "the words and more of foo bar"),
        ("你好（世界）", "你好世界"),
        ("ジョン・スミス and a·b", "ジョンスミス and a b"),
        ('say"hi"now, „hallo“, « bonjour »', "say hi now, hallo, bonjour"),
        ("it’s ‘fine’", "it's 'fine'"),
        ("— Bonjour, dit-il.", "Bonjour, dit-il."),
        ("Москва — столица России", "Москва, столица России"),
        ("1990–2000, well – yes", "1990–2000, well, yes"),
        ("他说——你好", "他说,你好"),
        ("Well…", "Well."),
        ("Well… no. Well… No.", "Well, no. Well. No."),
        ("wait…what", "wait, what"),
        ("真的……我不知道……", "真的,我不知道。"),
        ("What?!?! No!!! Yes,,. 好！！？", "What? No! Yes. 好？"),
        ("really . . . ?", "really?"),
        (", . leading", "leading"),
        (".5 and 3.14 and 1,000", ".5 and 3.14 and 1,000"),
        ("at 9:30 or 9：30: go", "at 9:30 or 9:30, go"),
        ("about ~5, 5~10, so~", "about ~5, 5~10, so,"),
        ("好～走吧〜", "好，走吧，"),
        ("wow‼ what⁉", "wow! what?"),
        ("a | b | c", "a b c"),
        ("e" + "\u0301" * 50, "\u00e9" + "\u0301" * 4),
        ("\ud83d\ude00 pair, half \ud83d gone \ude00", "pair, half gone"),
        ("x\ud835\udc00y", "x\U0001d400y"),
        ("1 < 2 and a+b=c", "1 < 2 and a+b=c"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_cleaned_text_can_be_read_aloud(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@pytest.mark.parametrize("literal", [*SPECIAL_TOKENS, *QWEN_LITERALS[:-1]])
def test_no_special_token_literal_survives(literal: str) -> None:
    assert clean_text(f"One{literal}two, {literal}three {literal}.") == "One two, three."
    assert clean_text(literal) == ""


def test_a_literal_hidden_in_another_or_split_by_invisible_characters_does_not_survive() -> None:
    for text in (
        "<|te<|laugh|>xt_end|>",
        "[S[S1]2]",
        "<|text\u200b_end|>",
        "[\u00adS2]",
        "<|text_\x00end|>",
        "[S\ud8002]",
    ):
        cleaned = clean_text("a" + text + "b", keep_tags=True)
        assert not any(token in cleaned for token in SPECIAL_TOKENS if token not in EXPRESSION_TAGS)
        assert "text_end|>" not in cleaned


def test_allowed_tags_stay_where_they_stand_and_others_go() -> None:
    text = "So <|laugh|>funny<|sigh|>… <|text_end|>[S2]yes <|/laugh_speak|>!"
    assert clean_text(text, keep_tags=True) == "So <|laugh|>funny<|sigh|>, yes <|/laugh_speak|>!"
    for tag in EXPRESSION_TAGS:
        assert clean_text(f"a {tag} b", keep_tags=True) == f"a {tag} b"


ODD = st.sampled_from([*"ab. ,!?…—~:;'\"()[]{}\n\t1 9。！，「」中あーカ한é😀\u0301\u200b|<>*–-", *SPECIAL_TOKENS])
ODD_TEXT = st.lists(ODD | st.characters(), max_size=25).map("".join)


@settings(deadline=None)
@given(text=ODD_TEXT, keep_tags=st.booleans())
@example(text="a*\u0301", keep_tags=False)
def test_cleaning_twice_changes_nothing(text: str, keep_tags: bool) -> None:
    cleaned = clean_text(text, keep_tags=keep_tags)
    assert clean_text(cleaned, keep_tags=keep_tags) == cleaned
    assert cleaned == cleaned.strip()
    assert not re.search(r"[^\S ]| {2}|[,!?]{2}", cleaned)
    assert all(unicodedata.category(character)[0] != "C" for character in cleaned)
    assert not any(token in cleaned for token in SPECIAL_TOKENS if not (keep_tags and token in EXPRESSION_TAGS))


PLAIN = st.text(st.sampled_from("abcXYZ 123,.!?\n()[]“”éßжあカ中한—…:;"), max_size=60)


@settings(deadline=None)
@given(text=PLAIN)
def test_cleaning_keeps_every_letter_and_digit_of_ordinary_text(text: str) -> None:
    without_tags = re.sub(r"\[S\d+\]", "", text)
    assert words_of(clean_text(text)) == words_of(without_tags)


# --- splitting


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One two. Three four.", ["One two.", "Three four."]),
        ("Pi is 3.14. Right?", ["Pi is 3.14.", "Right?"]),
        ("Dr. Smith met J. Doe. They ate.", ["Dr. Smith met J. Doe.", "They ate."]),
        ("See example.com now! Or not.", ["See example.com now!", "Or not."]),
        ("Am 3. Mai z.B. kam er. Gut.", ["Am 3. Mai z.B. kam er.", "Gut."]),
        ("М. ул. Мира, т.е. здесь. Да.", ["М. ул. Мира, т.е. здесь.", "Да."]),
        ("今天好。明天呢？好！", ["今天好。", "明天呢？", "好！"]),
        ("说'好。'走了", ["说'好。'", "走了"]),
        ("한국어 문장입니다. 또 하나.", ["한국어 문장입니다.", "또 하나."]),
        ("Fine.<|laugh|>Go on.", ["Fine.", "<|laugh|>Go on."]),
        ("混合text.然后", ["混合text.", "然后"]),
    ],
)
def test_sentences_end_where_readers_end_them(text: str, parts: list[str]) -> None:
    longest = max(map(estimated_seconds, parts))
    assert split_text(text, longest + 0.15) == parts


def test_a_text_that_fits_stays_whole() -> None:
    text = "One. Two! Three? Four, five."
    assert split_text(text) == [text]
    assert split_text("字") == ["字"]


def test_clauses_then_words_then_characters_are_cut_when_a_sentence_is_too_long() -> None:
    assert split_text("aaa bbb ccc, ddd eee fff", 1.0) == ["aaa bbb ccc,", "ddd eee fff"]
    assert split_text("aaa bbb ccc ddd eee fff", 1.0) == ["aaa bbb ccc", "ddd eee fff"]
    assert split_text("a" * 24, 1.0) == ["a" * 12] * 2
    assert split_text("1,000,000 2,000,000", 4.0) == ["1,000,000", "2,000,000"]


def test_parts_are_about_equally_long() -> None:
    seconds = [estimated_seconds(part) for part in split_text("The value 3.14 is pi. " * 25)]
    assert min(seconds) > 0.45 * max(seconds)


@pytest.mark.parametrize("text", ["字" * 300, "あ" * 500, "가" * 400, "word " * 300, "x" * 900, "тест " * 200])
def test_text_of_every_script_is_split_well_below_30_s(text: str) -> None:
    parts = split_text(text)
    assert len(parts) > 1
    assert all(estimated_seconds(part) <= MAX_SEGMENT_SECONDS for part in parts)


@pytest.mark.parametrize("base", ["e\u0323\u0302", "か\u3099", "\u1112\u1161\u11ab", "しゃっ", "好。", "<|laugh|>"])
def test_what_readers_take_for_one_character_is_never_cut(base: str) -> None:
    for part in split_text("x" + base * 120, 2.0):
        assert part.removeprefix("x") == base * (len(part.removeprefix("x")) // len(base))


def test_only_punctuation_gives_no_part() -> None:
    for text in ("", "   ", "...", "' - '", "。！？"):
        assert split_text(text) == []


SENTENCES = st.text(st.sampled_from("abc def 123. , ! ? 。！，中文あーカ한국 'é–$%"), max_size=400)


@settings(deadline=None)
@given(text=SENTENCES, max_seconds=st.floats(0.5, 15))
def test_parts_joined_hold_every_speakable_character_in_order(text: str, max_seconds: float) -> None:
    parts = split_text(text, max_seconds)
    assert words_of("".join(parts)) == words_of(text)
    remaining = text
    for part in parts:  # each is a slice of the text, in order
        assert part in remaining
        remaining = remaining[remaining.index(part) + len(part) :]
    for part in parts:
        assert part == part.strip()
        assert (
            estimated_seconds(part) <= max_seconds + 1e-6 or len(part) <= 1 + 4
        )  # one character and what clings to it


@settings(deadline=None, max_examples=40)
@given(text=ODD_TEXT)
def test_any_readable_text_is_prepared_into_parts_within_the_limit(text: str) -> None:
    assume(is_readable(text * 20))
    parts = prepare_text(text * 20)
    assert parts
    assert all(estimated_seconds(part) <= MAX_SEGMENT_SECONDS + 1e-6 for part in parts)
    assert all(part.encode() for part in parts)


@pytest.mark.parametrize(
    "text", ["Word and word. " * 667, "字" * 10_000, "x" * 10_000, "(" * 9_999 + "a", "a " * 5_000]
)
def test_ten_thousand_characters_are_prepared_without_loss(text: str) -> None:
    assert words_of("".join(prepare_text(text))) == words_of(text)


# --- estimates


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("The quick brown fox jumps over the lazy dog.", 3.0),  # 9 words: 180 words a minute
        ("今天天气很好，我们去公园散步吧。", 3.4),
        ("きょうはいいてんきですね。", 1.6),
        ("오늘은 날씨가 참 좋네요.", 1.9),
        ("Съешь же ещё этих мягких французских булок.", 2.9),
        ("1234567890", 3.3),
        ("", 0.0),
    ],
)
def test_estimates_are_those_of_an_average_reader(text: str, seconds: float) -> None:
    assert estimated_seconds(text) == pytest.approx(seconds, abs=0.15)


@settings(deadline=None)
@given(left=st.text(max_size=40), right=st.text(max_size=40))
def test_estimates_of_parts_add_up(left: str, right: str) -> None:
    together = estimated_seconds(left + " " + right)
    assert together == pytest.approx(estimated_seconds(left) + estimated_seconds(" ") + estimated_seconds(right))


def test_the_frame_limit_is_generous_and_30_s_at_the_most() -> None:
    assert max_frames("a") == 28  # 2.2 s
    assert max_frames("Yes.") == 36
    assert max_frames("The quick brown fox jumps over the lazy dog.") == 138  # 11 s for 3 s of speech
    assert max_frames("字" * 1000) == MAX_SEGMENT_FRAMES == 375
    assert max_frames("<|laugh|>") == 63


# --- what is accepted


@pytest.mark.parametrize(
    "text", ["", "   ", "\n", "...", "?!", "。", "😀", "- —", "()", "<|text_end|>", "[S2]", "$", "\ud800"]
)
def test_a_text_without_words_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="nothing to speak"):
        prepare_text(text)


@pytest.mark.parametrize("text", ["a", "字", "か", "한", "ж", "7", "é"])
def test_one_character_is_enough(text: str) -> None:
    assert prepare_text(text) == [text]


def test_a_sound_is_enough_where_tags_are_allowed_but_a_mood_is_not() -> None:
    assert prepare_text("<|laugh|>", keep_tags=True) == ["<|laugh|>"]
    for text, keep_tags in (("<|emotion_happy|>", True), ("<|laugh|>", False)):
        with pytest.raises(InputError, match="nothing to speak"):
            prepare_text(text, keep_tags=keep_tags)


def test_half_a_surrogate_pair_is_dropped_like_a_control_character() -> None:
    assert prepare_text("a\ud83d b") == ["a b"]


@pytest.mark.parametrize("text", ["مرحبا بالعالم", "สวัสดีชาวโลก", "नमस्ते दुनिया", "שלום עולם", "Ελληνικά"])
def test_a_script_the_model_does_not_know_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="English, Chinese, Japanese, Korean, French, German, Russian"):
        prepare_text(text)


def test_a_foreign_word_within_a_known_script_passes() -> None:
    check_script("The Greek word λόγος means reason.")
    check_script("12 + 30")
    assert prepare_text("π is 3.14") == ["π is 3.14"]


@pytest.mark.parametrize("code", ["en", "zh", "ja", "ko", "fr", "de", "ru", "EN", "en-US", "zh_CN", " fr "])
def test_seven_languages_are_known(code: str) -> None:
    assert check_language(code) in LANGUAGES


@pytest.mark.parametrize("code", ["", "it", "english", "xx-en", "e", "q" * 500])
def test_any_other_language_is_an_input_error_that_names_the_seven(code: str) -> None:
    with pytest.raises(InputError) as caught:
        check_language(code)
    assert all(f"{code} ({name})" in str(caught.value) for code, name in LANGUAGES.items())
    assert len(str(caught.value)) < 200


# --- transcripts


def test_a_transcript_loses_its_tag_and_stays_in_one_piece() -> None:
    assert prepare_transcript("[S1]I do not know.\nReally.") == "I do not know. Really."
    assert prepare_transcript("word " * 100) == ("word " * 100).strip()
    with pytest.raises(InputError, match="words"):
        prepare_transcript("[S1] ...")


def test_the_transcript_of_a_cut_recording_is_cut_at_the_nearest_clause() -> None:
    text = "First sentence here. Second sentence here. Third sentence here."
    assert leading_part(text, 0.3) == "First sentence here."
    assert prepare_transcript(text, kept_share=0.6) == "First sentence here. Second sentence here."
    assert prepare_transcript(text, kept_share=0.98) == text
    assert prepare_transcript("one two three four", kept_share=0.5) == "one two"
    assert prepare_transcript("word", kept_share=0.01) == "word"


@pytest.mark.parametrize(("text", "upstream"), upstream_table("split_text_400"))
def test_splitting_keeps_the_words_that_upstreams_splitting_keeps(text: str, upstream: list[str]) -> None:
    """The cuts differ on purpose: ours are bounded in seconds, upstream's in bytes (400 are 26 s of English)."""
    if text in BETTER_THAN_UPSTREAM:
        return
    assert words_of("".join(split_text(clean_text(text)))) == words_of("".join(upstream))
