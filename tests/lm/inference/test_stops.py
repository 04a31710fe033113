"""Stop strings and whole characters, however tokens cut a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tokenizers.registry import ByteTokenizer, WordTokenizer
from data.tokenizers.words import LINE_END
from lm.inference.session import StoppedText, can_occur, check_stops

SMALL = st.text("abé→", max_size=12).map(str.encode)


def written(pieces: list[bytes], stops: list[bytes]) -> tuple[str, StoppedText]:
    text = StoppedText(stops)
    return "".join([text.add(piece) for piece in pieces] + [text.end()]), text


@given(
    st.lists(SMALL | st.binary(max_size=3), max_size=8), st.lists(SMALL.filter(bool), max_size=3)
)
def test_a_text_ends_where_the_first_stop_begins(pieces: list[bytes], stops: list[bytes]) -> None:
    """Beside a search in the whole text, after each token as it comes."""
    whole, expected, stopped = b"", None, False
    for piece in pieces:
        whole += piece
        found = [whole.find(stop) for stop in stops if stop in whole]
        if found:
            expected, stopped = whole[: min(found)], True
            break
    shown, text = written(pieces, stops)
    assert text.stopped == stopped
    assert bytes(text.written) == (whole if expected is None else expected)
    assert shown == bytes(text.written).decode(errors="replace")


def test_nothing_is_shown_that_may_have_to_be_taken_back() -> None:
    text = StoppedText([b"END"])
    pieces = [b"a", "é".encode()[:1], "é".encode()[1:], b"E", b"N", b"x", b"E", b"N", b"D", b"z"]
    assert [text.add(piece) for piece in pieces] == ["a", "", "é", "", "", "ENx", "", "", "", ""]
    assert text.end() == "" and bytes(text.written) == "aéENx".encode()


@given(st.lists(st.binary(max_size=3), min_size=1, max_size=4), st.binary(min_size=1, max_size=5))
def test_what_can_occur_is_what_some_sequence_contains(pieces: list[bytes], text: bytes) -> None:
    texts = {b""}
    for _ in range(len(text) + 1):
        texts |= {(left + piece)[-12:] for left in texts for piece in pieces}
    assert can_occur(text, pieces) == any(text in some for some in texts)


def test_words_never_end_two_lines_at_once() -> None:
    pieces = [b" the", b" end", b" \n", b""]
    assert can_occur(b" \n the", pieces) and can_occur(b"he en", pieces)
    assert not can_occur(b"\n\n", pieces) and not can_occur(b"theend", pieces)


def test_empty_and_impossible_stops_are_refused() -> None:
    check_stops([b"\n\n", b"\xff"], ByteTokenizer())
    words = WordTokenizer([(b"the", 3), (LINE_END, 2), (b"<unk>", 1)], 1, 2)
    with pytest.raises(ValueError, match=r"'\\n\\n' can never occur in a text of .* words-3"):
        check_stops([b"the", b"\n\n"], words)
    with pytest.raises(ValueError, match="must not be empty"):
        check_stops([b""], ByteTokenizer())
