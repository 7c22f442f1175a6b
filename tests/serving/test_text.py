"""Text in pieces: joined they are the text, no character is torn, and nothing of a stop ever gets out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.serving.text import TextStream

ALPHABET = st.sampled_from(["a", "b", "ab", "\u00e9", "\u4f60", "\U0001f600", "\U0001f468\u200d\U0001f469", "\n"])
TEXTS = st.lists(ALPHABET, max_size=12).map("".join)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)])]


def stream(pieces, stops=()):
    """Pieces of text, whether a stop ended it, and how many pieces were read."""
    text, found = TextStream(stops), []
    for piece in pieces:
        if not text.stopped:
            found.append(text.push(piece))
    n_read = len(found)
    found.append(text.finish())
    assert "".join(found) == text.text
    return found, text.stopped, n_read


@given(TEXTS, st.lists(st.integers(0, 60), max_size=8), st.lists(TEXTS.filter(bool), max_size=3))
def test_stops_are_found_across_any_split(text, cuts, stops):
    pieces = split(text.encode(), cuts)
    found, stopped, n_read = stream(pieces, stops)
    joined = "".join(found)
    first = next((n for n in range(len(pieces) + 1) if any(s.encode() in b"".join(pieces[:n]) for s in stops)), None)
    if first is None:
        assert not stopped and joined == text
        return
    read = b"".join(pieces[:first])
    places = [read.find(stop.encode()) for stop in stops if stop.encode() in read]
    assert stopped and n_read == first
    assert joined == read[: min(places)].decode()


@given(st.binary(max_size=30), st.lists(st.integers(0, 40), max_size=8))
def test_streamed_bytes_join_to_the_decoded_text(data, cuts):
    found, _, _ = stream(split(data, cuts))
    whole = data.decode("utf-8", errors="replace")
    joined = "".join(found)
    assert whole.startswith(joined) and set(whole[len(joined) :]) <= {
        "\ufffd"
    }  # half a character at the end is left out


@pytest.mark.parametrize("text", ["\u00e9", "\u4f60", "\U0001f600", "a\U0001f468\u200d\U0001f469b"])
def test_no_piece_holds_half_a_character(text):
    found, _, _ = stream([bytes([byte]) for byte in text.encode()])
    assert "".join(found) == text and "\ufffd" not in "".join(found)
    for end in range(len(text.encode())):
        cut, _, _ = stream([text.encode()[:end]])
        assert "\ufffd" not in "".join(cut) and text.startswith("".join(cut))


def test_a_byte_that_is_no_text_is_said_at_once():
    text = TextStream()
    assert text.push(b"a\xff") == "a\ufffd" and text.push(b"b") == "b"


def test_text_held_back_for_a_stop_that_does_not_come_is_given_at_the_end():
    text = TextStream(["END", "stop here"])
    assert text.push(b"the E") == "the " and text.push(b"N") == ""
    assert text.finish() == "EN" and text.text == "the EN"
    text = TextStream(["END", "stop here"])
    assert text.push(b"a stop hE") == "a stop h" and text.push(b"NDE") == "" and text.stopped
    assert text.text == "a stop h"
