"""The 25 kinds of instructions of IFEval, each a check of one response. Names and arguments are those of its data.

Words and sentences are counted by rules written here. Two kinds and the language need a detector, which is imported
when one of them is asked for and seeded, since it draws at random.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from isoflop.errors import DataError

LEAST, LESS = "at least", "less than"
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS = {
    *("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "etc", "inc"),
    *("ltd", "co", "no", "fig", "e.g", "i.e", "a.m", "p.m", "u.s", "u.k", "ph.d"),
}
_CLOSING, _OPENING = "[\"')\\]\u201d\u2019*]*", "[\"'(\\[\u201c\u2018*]*"
_END = re.compile(rf"[.!?]+{_CLOSING}(?=\s+{_OPENING}[A-Z0-9])|[.!?]+{_CLOSING}\s*$|[\u3002\uff01\uff1f]+")


def related(count: int, relation: str, bound: int) -> bool:
    """Whether a count stands in the relation to the bound.

    Raises:
        ValueError: another relation.
    """
    if relation not in (LEAST, LESS):
        raise ValueError(f"relation {relation!r} is neither {LEAST!r} nor {LESS!r}")
    return count >= bound if relation == LEAST else count < bound


def count_sentences(text: str) -> int:
    """Sentences end at a full stop, mark or the end of the text; not at abbreviations, initials or in numbers."""
    count, start = 0, 0
    for found in _END.finditer(text):
        before = text[start : found.start()].split()
        word = before[-1].lower().strip("\"'([*") if before else ""
        short = word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i")
        if found[0].startswith(".") and short and found.end() < len(text.rstrip()):
            continue
        count, start = count + bool(before), found.end()
    return count + bool(text[start:].strip())


def language_of(text: str) -> str | None:
    """Code of the language; None where the text has nothing to tell it by.

    Raises:
        DataError: the detector is not installed.
    """
    try:
        import langdetect
    except ImportError as error:
        raise DataError("ifeval needs langdetect; install isoflop[evaluation]") from error
    langdetect.DetectorFactory.seed = 0
    try:
        return str(langdetect.detect(text))
    except langdetect.LangDetectException:
        return None


def _keywords(text: str, keywords: list[str]) -> bool:
    return all(re.search(keyword, text, flags=re.IGNORECASE) for keyword in keywords)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return related(len(re.findall(keyword.strip(), text, flags=re.IGNORECASE)), relation, frequency)


def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, flags=re.IGNORECASE) for word in forbidden_words)


def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return related(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _language(text: str, language: str) -> bool:
    return language_of(text) in (language, None)


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return related(count_sentences(text), relation, num_sentences)


def _words(text: str, num_words: int, relation: str) -> bool:
    return related(len(re.findall(r"\w+", text)), relation, num_words)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Separated by ***; an empty one may stand at an end only."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if any(not part for part in parts[1:-1]):
        return False
    return sum(bool(part) for part in parts) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are separated by an empty line; empty ones keep their place but are not counted."""
    parts = text.split("\n\n")
    n_parts = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > n_parts or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return n_parts == num_paragraphs and re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, marker.lower())
    return re.search(pattern, text.lower()) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, flags=re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, flags=re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _constrained(text: str) -> bool:
    return any(answer in text for answer in ANSWERS)


def _highlights(text: str, num_highlights: int) -> bool:
    """Text between single stars, and again between double ones; pairs that hold nothing do not count."""
    single = [found.strip("*") for found in re.findall(r"\*[^\n\*]*\*", text)]
    double = [found[2:-2] for found in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(bool(inside.strip()) for inside in (*single, *double)) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{section_spliter.strip()}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    inside = re.sub(r"^```(?:json|Json|JSON)?", "", text.strip()).removesuffix("```").strip()
    try:
        json.loads(inside)
    except ValueError:
        return False
    return True


def _title(text: str) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    """Separated by six stars; an empty part may stand at an end only, and both must differ."""
    parts = [part.strip() for part in text.split("******")]
    full = [part for part in parts if part]
    return all(parts[1:-1]) and len(full) == 2 and full[0] != full[1]


def _repeat(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    """Words all of whose letters are capital; parts of a hyphenated word count once."""
    words = re.findall(r"\w+(?:[-.&/]\w+)*", text)
    return related(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _capital(text: str) -> bool:
    return text.isupper() and language_of(text) in ("en", None)


def _lowercase(text: str) -> bool:
    return text.islower() and language_of(text) in ("en", None)


def _no_comma(text: str) -> bool:
    return "," not in text


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capital,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _no_comma,
}


def follows(kind: str, text: str, arguments: dict[str, Any]) -> bool:
    """Whether a response follows one instruction; an empty response follows none.

    Raises:
        ValueError: an unknown kind, or arguments that it does not have.
    """
    if kind not in CHECKS:
        raise ValueError(f"instruction {kind!r} is none of the {len(CHECKS)} kinds")
    try:
        return bool(text.strip()) and CHECKS[kind](text, **arguments)
    except TypeError as error:
        raise ValueError(f"instruction {kind}: {error}") from error
