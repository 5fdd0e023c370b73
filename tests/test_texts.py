"""One rule says when two texts are the same."""

import unicodedata

import pytest

from course_utils.data import texts

CAFE = "Où est le café numéro 5 ?"
SAME = {
    "a space at the end": CAFE + " ",
    "capitals": CAFE.upper(),
    "decomposed": unicodedata.normalize("NFD", CAFE),
    "compatibility form": CAFE.replace("5", "\N{FULLWIDTH DIGIT FIVE}"),
    "no-break space": CAFE.replace(" ?", "\N{NO-BREAK SPACE}?"),
    "tabs and line breaks": CAFE.replace(" ", "\t\r\n  "),
    "line separator": CAFE.replace(" ", "\u2028"),
    "zero-width space": CAFE.replace("café", "ca\u200bfé"),
    "byte order mark": "\ufeff" + CAFE,
    "soft hyphen": CAFE.replace("numéro", "nu\u00admé\u00adro"),
    "bidirectional marks": "\u202a" + CAFE + "\u202c",
    "grapheme joiner": CAFE.replace("est", "e\u034fst"),
    "variation selector": CAFE.replace("5", "5\ufe0f"),
    "a joiner before the accent": unicodedata.normalize("NFD", CAFE).replace(
        "\u0301", "\u200d\u0301"
    ),
    "all of it": "\u2060 " + unicodedata.normalize("NFD", CAFE.upper()) + "\u3000",
}
OTHER = {
    "another number": CAFE.replace("5", "6"),
    "without the accent": CAFE.replace("é", "e"),
    "joined words": CAFE.replace(" est ", "est"),
    "without the question mark": CAFE.rstrip(" ?"),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_what_a_reader_calls_the_same_is_the_same(text):
    assert texts.same_text(CAFE, text)
    assert texts.normalise(texts.normalise(text)) == texts.normalise(text)
    assert texts.words(text) == texts.words(CAFE)


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_what_a_reader_tells_apart_stays_apart(text):
    assert not texts.same_text(CAFE, text)


@pytest.mark.parametrize(
    ("one", "other"), [("STRASSE", "straße"), ("ﬁne", "FINE"), ("Ὀδυσσεύς", "ὈΔΥΣΣΕΎΣ")]
)
def test_case_is_folded_as_unicode_says(one, other):
    assert texts.same_text(one, other)


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\ufeff\u00a0", None])
def test_nothing_to_read_is_blank(text):
    assert texts.is_blank(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("say <|eot_id|> now", "<|eot_id|>"),
        ("<|a_new_token_9|>", "<|a_new_token_9|>"),
        ("end</s>", "</s>"),
        ("a <| b |> c < |x|", None),
        ("", None),
    ],
)
def test_control_tokens_are_found_by_form_and_by_the_tokenizer_s_names(text, found):
    match = texts.control_pattern(["</s>", ""]).search(text)
    assert (match and match[0]) == found


def test_what_was_dropped_has_the_rows_numbers():
    dropped = texts.Dropped()
    for row in (3, 5, 9):
        dropped.drop("blank" if row == 5 else "same", row)
    assert dropped == {"same": 2, "blank": 1}
    assert dropped.rows == {"same": [3, 9], "blank": [5]}
