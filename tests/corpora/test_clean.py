"""What is taken out of documents."""

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepta.corpora.clean import _CONTROL, _LINE_ENDS, _MAY_BE_SYMBOLS, _SYMBOLS, Cleaner, strip_control
from lepta.corpora.settings import Clean

RUSSIAN = Cleaner(Clean(scripts=["Cyrillic", "Latin"]))
ANY = Cleaner(Clean())
MOST = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("<>/&;ab \n\r\t😀❤\ufe0f\u200d\u00adпи中https://.()[]"),
    ),
    max_size=300,
)


def clean(text, cleaner=RUSSIAN):
    return cleaner.clean(text).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>Раз</p><p class='x'>два</p>", "Раз\n\nдва"),
        ("а <b>б</b> в<br/>г", "а б в\nг"),
        ("до<script>var x = '<b>';</SCRIPT >после<!-- <p>нет</p> -->!", "допосле!"),
        ("<style>p {color: red}</style>Текст", "Текст"),
        ("Tom &amp; Jerry &laquo;да&raquo;", "Tom & Jerry «да»"),
        ("a < b, List<String>, <имя>, x<y>z", "a < b, List<String>, <имя>, x<y>z"),
        ("<script>не закрыт", "не закрыт"),
    ],
)
def test_markup(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("См. https://example.org/a?b=1, и всё.", "См. , и всё."),
        ("на www.example.org!", "на !"),
        ("[Слово](https://example.org/x) тут", "Слово тут"),
        ("f(x)[0](y) и [1]", "f(x)[0](y) и [1]"),
    ],
)
def test_links(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Привет 😀👍🏽 мир", "Привет мир"),
        ("семья 👨‍👩‍👧, флаг 🇷🇺, сердце ❤️", "семья , флаг , сердце"),
        ("№ 5, 20 °C, © и ™", "№ 5, 20 °C, © и ™"),
        ("1 #2 *3", "1 #2 *3"),
    ],
)
def test_symbols(text, expected):
    assert clean(text) == expected


def test_control_characters_and_ends_of_lines():
    assert clean("\ufeffа\u00adб\x00в\r\nг\u2028д\u200b \u202eе\ufffd") == "абв\nг\nд е"


def test_joiners_of_letters_stay_in_scripts_that_need_them():
    assert clean("می\u200cخواهم 👨\u200d👩", ANY) == "می\u200cخواهم"


def test_whitespace():
    assert clean("  а \t б\u00a0в  \n\n\n\n г \n") == "а б в\n\nг"


def test_normal_forms():
    assert clean("и\u0306 ﬁ") == "й ﬁ"
    assert clean("и\u0306 ﬁ", Cleaner(Clean(unicode="NFKC"))) == "й fi"
    assert clean("и\u0306", Cleaner(Clean(unicode=None))) == "и\u0306"


def test_foreign_lines_and_letters_go_and_their_share_is_told():
    cleaned = RUSSIAN.clean("Столица 東京 велика.\n日本の首都は東京です。\nДа.")
    assert cleaned.text == "Столица велика.\nДа."
    assert cleaned.removed["foreign lines"] == 12
    assert 0.3 < cleaned.foreign_share < 0.5


def test_foreign_letters_may_stay():
    keep = Cleaner(Clean(scripts=["Cyrillic"], foreign_letters="keep"))
    assert clean("Число π равно трём с небольшим", keep) == "Число π равно трём с небольшим"


def test_what_is_looked_for_first_misses_no_symbol_and_no_control_character():
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    symbols = [character for character in every if _SYMBOLS.match(character)]
    assert len(symbols) > 5000
    assert all(map(_MAY_BE_SYMBOLS.match, symbols))
    for character in every:
        if character not in "\n\u200c\u200d" and (_CONTROL.match(character) or _LINE_ENDS.match(character)):
            assert strip_control(character) != character


def test_no_alphabet_means_all_alphabets():
    assert clean("東京 и ქართული", ANY) == "東京 и ქართული"
    assert ANY.clean("東京").foreign_share == 0


@given(MOST)
def test_what_is_removed_sums_to_the_difference(text):
    for cleaner in (RUSSIAN, ANY):
        cleaned = cleaner.clean(text)
        assert len(text) - sum(cleaned.removed.values()) == len(cleaned.text)
        assert 0 <= cleaned.foreign_share <= 1


@given(MOST)
def test_no_foreign_letter_and_no_control_character_is_left(text):
    assert not set(clean(text)) & set("中日\x00\u00ad\u200b\r\t😀\ufe0f")


@pytest.mark.parametrize(
    "part", ["<script ", "<!-- ", "<a ", "</p ", "[a", "[](/", "https://....", "&", "\u200d", "\n ", "中a", "http://a."]
)
def test_no_text_takes_quadratic_time(part):
    started = time.process_time()
    RUSSIAN.clean(part * (400_000 // len(part)))  # steps of a nanosecond each for all pairs: 160 s
    assert time.process_time() - started < 5
