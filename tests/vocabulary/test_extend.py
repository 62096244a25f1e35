"""New tokens behind an old vocabulary, which stays as it is."""

import copy
import unicodedata

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lepta.core.errors import LeptaError
from lepta.vocabulary.build import build_vocabulary, count_corpus
from lepta.vocabulary.check import all_scripts
from lepta.vocabulary.extend import dominant_script, extend, words_of_script
from lepta.vocabulary.families import read_vocabulary
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.words import WordTable, weigh

ADDED = 2000


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer):
    """A small old vocabulary, for extensions that take no time."""
    return tiny_tokenizer.vocabulary()


@pytest.fixture(scope="module")
def few_words(tiny):
    """Cyrillic words of a few documents and how much they count."""
    table = words_of_script(count_corpus(tiny.word_rules(), ["starter:ru/valid"]), "Cyrillic")
    return table.words, weigh(table)


def quick_extend(vocabulary, words_and_weights, add):
    """Extend as ever, with fewer words handed to the trainer: seconds less, and merges only a little worse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lepta.vocabulary.merges.OCCURRENCES", 50_000)
        return extend(vocabulary, *words_and_weights, add, "Cyrillic")


def table_of(counts):
    """Words of one part of one source."""
    column = np.array([list(counts.values())], dtype=np.float64).T
    return WordTable(list(counts), sparse.csr_array(column), np.array([0]), ["a"])


def test_old_vocabulary_keeps_its_ids(smollm2, extended):
    before, after = smollm2.spec["model"]["vocab"], extended.spec["model"]["vocab"]
    assert {token: after.get(token) for token in before} == before


def test_new_ids_follow_the_largest_old_id_without_holes(old, new):
    assert new.size == old.size + ADDED
    assert all(new.bytes_of[i] is not None for i in range(old.size, new.size))
    assert len(set(new.bytes_of)) == new.size


def test_old_merges_are_a_prefix_of_the_new_ones(smollm2, extended):
    before, after = smollm2.spec["model"]["merges"], extended.spec["model"]["merges"]
    assert len(after) >= len(before) + ADDED
    assert after[: len(before)] == before


def test_everything_else_of_the_tokenizer_stays(smollm2, extended):
    without = [{k: v for k, v in t.spec.items() if k != "model"} for t in (smollm2, extended)]
    assert without[0] == without[1]
    assert extended.config == smollm2.config
    assert extended.chat_template == smollm2.chat_template


def test_every_new_token_is_reachable(old, new):
    ids = list(range(old.size, new.size))
    assert new.split([new.bytes_of[i] for i in ids]) == [[i] for i in ids]


def test_new_tokens_hold_cyrillic_letters_with_at_most_a_sign_and_a_space_before(old, new):
    tokens = [new.bytes_of[i].decode() for i in range(old.size, new.size)]
    word = r"[^\r\n\p{L}\p{N}]? ?[\p{Cyrillic}\p{Mn}]+"
    assert [token for token in tokens if not regex.fullmatch(word, token)] == []


def test_english_text_keeps_its_ids(old, new, english):
    assert new.encode(english) == old.encode(english)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(max_codepoint=0x2FF), max_size=80))
def test_text_without_cyrillic_keeps_its_ids(old, new, text):
    assert new.encode([text]) == old.encode([text])


def test_russian_needs_fewer_tokens(old, new, russian):
    before, after = (sum(map(len, vocabulary.encode(russian))) for vocabulary in (old, new))
    assert after < before / 1.8


def test_added_tokens_are_used_in_running_text(old, new, russian):
    used = {i for ids in new.encode(russian) for i in ids if i >= old.size}
    assert len(used) > ADDED / 2


def test_same_text_gives_the_same_vocabulary(tiny, few_words):
    assert quick_extend(tiny, few_words, 50) == quick_extend(tiny, few_words, 50)


def test_fewer_tokens_are_the_first_of_more(tiny, few_words):
    few, more = quick_extend(tiny, few_words, 20)["model"], quick_extend(tiny, few_words, 60)["model"]
    assert more["merges"][: len(few["merges"])] == few["merges"]
    assert {token: more["vocab"].get(token) for token in few["vocab"]} == few["vocab"]


def test_input_spec_is_not_changed(tiny, few_words):
    before = copy.deepcopy(tiny.spec)
    quick_extend(tiny, few_words, 20)
    assert tiny.spec == before


def test_merges_written_as_strings_stay_strings_and_mean_the_same(tiny_tokenizer, tiny, few_words):
    """Older `tokenizer.json` files write "a b" for ["a", "b"]."""
    model = tiny_tokenizer.spec["model"]
    spec = tiny_tokenizer.spec | {"model": model | {"merges": [" ".join(pair) for pair in model["merges"]]}}
    as_strings, as_pairs = quick_extend(read_vocabulary(spec), few_words, 30), quick_extend(tiny, few_words, 30)
    assert all(isinstance(merge, str) for merge in as_strings["model"]["merges"])
    assert [merge.split(" ") for merge in as_strings["model"]["merges"]] == as_pairs["model"]["merges"]
    text = ["Она смотрела в окно и думала о том, что было."]
    assert read_vocabulary(as_strings).encode(text) == read_vocabulary(as_pairs).encode(text)


def test_ids_of_special_tokens_above_the_text_tokens_are_not_reused(tiny_tokenizer, few_words):
    spec = copy.deepcopy(tiny_tokenizer.spec)
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 4_008, "content": "<last>"})
    vocabulary = read_vocabulary(spec)
    new = read_vocabulary(quick_extend(vocabulary, few_words, 10))
    assert new.size == 4_009 + 10
    assert new.bytes_of[4_008] == b"<last>"


def test_asking_for_more_tokens_than_the_text_holds_raises(tiny):
    with pytest.raises(LeptaError, match=r"corpus: only \d+ new tokens .* not 1,000; give more"):
        quick_extend(tiny, ([" привет"], np.array([5.0])), 1000)


def test_new_characters_alone_may_be_all_that_is_added(train, build):
    """An English SentencePiece vocabulary knows no Cyrillic letter: the first new tokens are letters."""
    source = open_tokenizer(train(model_type="bpe", vocab_size=500, remove_extra_whitespaces=False, english=True))
    old = source.vocabulary()
    new = build(source, "extended", add=5).vocabulary()
    assert new.size == old.size + 5
    assert all(regex.fullmatch(r"\p{Cyrillic}", new.bytes_of[i].decode()) for i in range(old.size, new.size))


def test_signs_that_a_sentencepiece_vocabulary_lacks_get_no_token(train, build):
    """Such a token would change the ids of text without Cyrillic letters."""
    source = open_tokenizer(train(model_type="bpe", vocab_size=500, remove_extra_whitespaces=False, english=True))
    old, new = source.vocabulary(), build(source, "extended", add=200).vocabulary()
    tokens = [new.bytes_of[i].decode() for i in range(old.size, new.size)]
    assert [token for token in tokens if not regex.search(r"\p{Cyrillic}", token)] == []
    text = "Il dit « oui » — voilà !"
    assert new.encode([text]) == old.encode([text])


@pytest.mark.parametrize("name", ["tiny_tokenizer", "tiny_llama3", "mistral"])
def test_stress_marks_of_the_corpus_leave_those_of_other_text_alone(request, build, russian, tmp_path, name):
    source = request.getfixturevalue(name)
    (tmp_path / "a.txt").write_text(regex.sub("([аеиоуыэюя])", "\\1\u0301", "\n".join(russian)), encoding="utf-8")
    built = build(source, "extended", corpus=[str(tmp_path / "a.txt")], add=400)
    old, new = source.vocabulary(), built.vocabulary()
    text = ["cafe\u0301 a\u0301 \u0301 e\u0300", "o\u0301ut"]
    assert new.encode(text) == old.encode(text)


KOREAN = (
    "다람쥐 헌 쳇바퀴에 타고파. 모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. "
    "인간은 천부적으로 이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다. 안녕하세요, 감사합니다. "
)
VIETNAMESE = (
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi. Mọi con người đều được tạo hóa "
    "ban cho lý trí và lương tâm và cần phải đối xử với nhau trong tình bằng hữu. Những điều tốt đẹp. "
)
AMHARIC = "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው። የተፈጥሮ ማስተዋልና ሕሊና ስላለው አንዱ ሌላውን በወንድማማችነት መንፈስ መመልከት ይገባዋል። "


@pytest.mark.parametrize(
    ("name", "text", "form", "add"),
    [
        ("tiny_tokenizer", KOREAN, "NFC", 120),
        ("tiny_llama3", KOREAN, "NFC", 120),
        ("mistral", KOREAN, "NFD", 60),
        ("english", VIETNAMESE, "NFD", 20),
        ("tiny_llama3", AMHARIC, "NFC", 60),
    ],
)
def test_text_of_all_other_scripts_keeps_its_ids(request, name, text, form, add, train, build, write_lines):
    """New tokens are of whole characters, or of bytes that begin characters of the script alone; marks have letters."""
    if name == "english":
        settings = {"model_type": "bpe", "vocab_size": 500, "remove_extra_whitespaces": False}
        source = open_tokenizer(train(english=True, **settings))
    else:
        source = request.getfixturevalue(name)
    text = unicodedata.normalize(form, text)
    built = build(source, "extended", corpus=[str(write_lines("a.txt", [text]))], add=add)
    old, new = source.vocabulary(), built.vocabulary()
    assert new.size == old.size + add
    script = regex.compile(rf"\p{{Script={built.facts['script']}}}")
    documents = [script.sub("", document) for document in all_scripts()]
    documents += [
        "за\u0301мок",
        "e\u0301" if built.facts["script"] != "Latin" else "\u0301\u0302 д\u0301",
        "🫠👩‍🔬 漢字かな",
    ]
    assert new.encode(documents) == old.encode(documents)
    ids = list(range(old.size, new.size))
    assert new.split([new.data(i) for i in ids]) == [[i] for i in ids]
    assert len(new.encode([text])[0]) < len(old.encode([text])[0])


@pytest.mark.parametrize(
    ("words", "script"),
    [
        ({" hello": 10, " привет": 1}, "Cyrillic"),
        ({" hello": 100, " привет": 1}, "Latin"),
        ({" żółć": 1_000, " π": 1, " слово": 5}, "Latin"),
        ({" γεια": 5, " привет": 1}, "Greek"),
        ({" ⵜⴰⵎⴰⵣⵉⵖⵜ": 1}, "Tifinagh"),
        ({" hello": 3}, "Latin"),
        ({"123": 3, "!": 1}, "Latin"),
    ],
)
def test_dominant_script(words, script):
    assert dominant_script(list(words), np.array([*words.values()], dtype=np.float64)) == script


def test_words_of_script_keeps_whole_words_of_that_script_only():
    words = [
        " привет",
        "привет",
        " hello",
        "приvет",
        "  привет",
        "привет!",
        " й",
        "5",
        "«привет",
        "- привет",
        "\nпривет",
    ]
    kept = words_of_script(table_of(dict.fromkeys(words, 1)), "Cyrillic")
    assert set(kept.words) == {" привет", "привет", "  привет", " й", "«привет", "- привет"}
    assert kept.counts.shape == (6, 1)


def test_text_in_latin_letters_may_quote_other_scripts(build, tiny_tokenizer, write_lines):
    polish = "Zażółć gęślą jaźń, książka leży na stole obok źródła światła. Wrocław żółć śnieg większość przyjaciół. "
    corpus = [str(write_lines("pl.txt", [polish * 20, "Pi oznacza się literą π.", "Slowo Москва to miasto."]))]
    built = build(tiny_tokenizer, "extended", corpus=corpus, add=20)
    old, new = tiny_tokenizer.vocabulary(), built.vocabulary()
    assert built.facts["script"] == "Latin"
    tokens = b"".join(new.data(i) for i in range(old.size, new.size)).decode(errors="ignore")
    assert not regex.search(r"[\p{Cyrillic}\p{Greek}]", tokens)
    with pytest.raises(LeptaError, match=r"only \d+ new tokens .* its words in Latin, not 9,000; .* another script"):
        build(tiny_tokenizer, "extended", corpus=corpus, add=9_000)


def test_unknown_script_and_missing_script_raise(build, tiny_tokenizer):
    for name in ("Klingonese", "", r"Greek}|\p{Latin"):
        with pytest.raises(LeptaError, match="script: unknown script"):
            build(tiny_tokenizer, "extended", corpus=["no/such/text.txt"], add=5, script=name)
    with pytest.raises(LeptaError, match="no word in the script Greek"):
        words_of_script(table_of({" hello": 1}), "Greek")


def test_unknown_scenario_raises(smollm2):
    with pytest.raises(LeptaError, match="scenario: Input should be 'extended', 'replaced', 'optimized', 'bpe' or"):
        build_vocabulary(smollm2, ["starter:ru/valid"], "enlarged", add=10)


def test_a_word_after_a_comma_merges_as_it_does_alone(build, mistral):
    """In ", мы" the comma joins what " мы" has become, or a token that was learned from one would not be reached."""
    new = build(mistral, "extended", corpus=["starter:ru/train"], add=3_000).vocabulary()
    ids = list(range(mistral.vocabulary().size, new.size))
    assert new.split([new.data(i) for i in ids]) == [[i] for i in ids]
