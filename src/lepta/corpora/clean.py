"""What is taken out of a document: markup, links, symbols, foreign letters, control characters, spare whitespace."""

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import regex

from lepta.corpora.settings import Clean

# Elements of HTML, so that "a < b", "List<String>" and "<name>" stay.
_BLOCKS = (
    "address|article|aside|blockquote|body|br|caption|center|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|form|"
    "h[1-6]|head|header|hr|html|iframe|li|main|nav|noscript|ol|option|p|pre|script|section|select|style|summary|table|"
    "tbody|td|template|textarea|tfoot|th|thead|title|tr|ul"
)
_INLINE = (
    "a|abbr|acronym|audio|b|bdi|bdo|big|button|canvas|cite|code|col|colgroup|data|del|dfn|em|embed|font|i|img|input|ins|"
    "kbd|label|link|map|mark|meta|nobr|object|param|picture|q|rp|rt|ruby|s|samp|small|source|span|strike|strong|sub|sup|"
    "svg|time|tt|u|var|video|wbr"
)
_BLOCK_TAG = regex.compile(rf"(?i)</?(?:{_BLOCKS})(?=[\s/>])[^<>]*>|<!doctype[^<>]*>")
_INLINE_TAG = regex.compile(rf"(?i)</?(?:{_INLINE})(?=[\s/>])[^<>]*>")
# What is between these is no text. Opening -> closing.
_UNSEEN = ((regex.compile(r"<!--"), "-->"), (regex.compile(r"(?i)<(script|style)\b"), None))
_MARKDOWN_LINK = regex.compile(r"!?\[([^\[\]\n]{0,1000})\]\(\s*(?:https?:|www\.|/|#)[^()\s]{0,2000}\s*\)")
_LINK = regex.compile(r"(?i)\b(?:https?://|ftp://|www\.)[^\s<>\"«»\[\]{}|\\^`]*[^\s<>\"«»\[\]{}|\\^`.,;:!?…()'’]")
_LINK_MARKS = ("://", "www.", "Www.", "WWW.")
# Emoji, dingbats, arrows and the like; not the signs that prose uses.
_SYMBOLS = regex.compile(
    r"[[\p{So}\p{Extended_Pictographic}\p{Emoji_Modifier}\p{Regional_Indicator}\uFE0E\uFE0F\u20E3\U000E0020-\U000E007F]"
    r"--[#*0-9©®™°№℃℉‼⁉]]+",
    regex.V1,
)
# All symbols are among these; few texts hold any, and a few ranges are searched ten times as fast.
_MAY_BE_SYMBOLS = re.compile("[\xa6\u0482\u058d-\u1fff\u203c\u2049\u20d0-\U0010ffff]")
# U+0600.. are signs of Arabic numbers.
_CONTROL = regex.compile(
    r"[[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Cn}\uFFFD]--[\n\t\u200C\u200D\u0600-\u0605\u06DD\u070F]]+", regex.V1
)
# Joiners shape letters of some scripts; of emoji they are what is left.
_LOOSE_JOINERS = regex.compile(r"(?<![\p{L}\p{M}])[\u200C\u200D]+|[\u200C\u200D]+(?![\p{L}\p{M}\u200C\u200D])")
_LINE_ENDS = regex.compile(r"\r\n?|[\x0B\x0C\x85\u2028\u2029]")
_BLANK_LINES = regex.compile(r"\n{3,}")
_LETTERS = regex.compile(r"[\p{L}\p{M}]+")


@dataclass(frozen=True)
class Cleaned:
    """A document after cleaning."""

    text: str
    # What was taken out -> characters. They sum to the difference in length; Unicode's normal form may add some.
    removed: dict[str, int]
    foreign_share: float  # of letters: those of no script of the alphabet, before they were taken out


class Cleaner:
    """Cleans documents as the settings say."""

    def __init__(self, settings: Clean) -> None:
        self._settings = settings
        allowed = "".join(rf"\p{{Script={script}}}" for script in settings.scripts)
        self._foreign: regex.Pattern[str] | None = None
        if allowed:
            self._foreign = regex.compile(rf"[^{allowed}\p{{Script=Common}}\p{{Script=Inherited}}]+", regex.V1)
        steps = {"unicode": self._normalise, "markup": strip_markup, "links": strip_links, "symbols": strip_symbols}
        self._steps: dict[str, Callable[[str], str]] = {}
        for name, step in steps.items():
            if getattr(settings, name):
                self._steps[name] = step
        self._steps["control"] = strip_control

    def clean(self, text: str) -> Cleaned:
        """Clean one document."""
        removed: dict[str, int] = {}
        for name, step in self._steps.items():
            text = _note(removed, name, text, step(text))
        share, foreign = 0.0, self._foreign and self._foreign.findall(text)
        if self._foreign and foreign:
            share = min(sum(map(len, foreign)) / max(count_letters(text), 1), 1.0)
            text = _note(removed, "foreign lines", text, self._keep_lines(text, self._foreign))
            if self._settings.foreign_letters == "remove":
                text = _note(removed, "foreign letters", text, self._foreign.sub("", text))
        text = _note(removed, "whitespace", text, squeeze(text))
        return Cleaned(text, removed, share)

    def _normalise(self, text: str) -> str:
        assert self._settings.unicode
        return unicodedata.normalize(self._settings.unicode, text)

    def _keep_lines(self, text: str, foreign: "regex.Pattern[str]") -> str:
        kept = []
        for line in text.split("\n"):
            letters = sum(map(len, foreign.findall(line)))
            if not letters or letters <= self._settings.foreign_line_share * count_letters(line):
                kept.append(line)
        return "\n".join(kept)


def _note(removed: dict[str, int], name: str, before: str, after: str) -> str:
    if len(before) != len(after):
        removed[name] = len(before) - len(after)
    return after


def count_letters(text: str) -> int:
    """Letters of a text, with their marks."""
    return sum(map(len, _LETTERS.findall(text)))


def strip_markup(text: str) -> str:
    """Take out tags, comments, scripts and style sheets of HTML, and write its entities as characters."""
    if "<" in text:
        for opening, closing in _UNSEEN:
            text = _strip_unseen(text, opening, closing)
        text = _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n", text))
    return html.unescape(text)


def _strip_unseen(text: str, opening: "regex.Pattern[str]", closing: str | None) -> str:
    """Take out what no reader sees. What is never closed stays, and is looked for once only: no quadratic time."""
    parts, start, folded = [], 0, ""
    while match := opening.search(text, start):
        folded = folded or text.lower()
        # A letter whose lower case is longer moves all places after it: then only exact closings are found.
        haystack = folded if len(folded) == len(text) else text
        end_mark = closing or f"</{match[1].lower()}"
        end = haystack.find(end_mark, match.end())
        if end < 0:
            break
        end = end + len(end_mark) if closing else text.find(">", end) + 1
        if end == 0:  # a tag that is not closed
            break
        parts.append(text[start : match.start()])
        start = end
    return "".join(parts) + text[start:]


def strip_links(text: str) -> str:
    """Take out web addresses; of a Markdown link the words stay."""
    if "](" in text:
        text = _MARKDOWN_LINK.sub(r"\1", text)
    return _LINK.sub("", text) if any(mark in text for mark in _LINK_MARKS) else text


def strip_symbols(text: str) -> str:
    """Take out emoji, dingbats, arrows and the like."""
    return _SYMBOLS.sub("", text) if _MAY_BE_SYMBOLS.search(text) else text


def strip_control(text: str) -> str:
    """Take out control, format and private characters; all ends of lines become one character."""
    if text.replace("\n", " ").isprintable() and "\ufffd" not in text:
        return text
    return _LOOSE_JOINERS.sub("", _CONTROL.sub("", _LINE_ENDS.sub("\n", text)))


def squeeze(text: str) -> str:
    """Write each run of spaces as one space, lines without spaces around, and no more than one blank line in a row."""
    return _BLANK_LINES.sub("\n\n", "\n".join([" ".join(line.split()) for line in text.split("\n")])).strip()
