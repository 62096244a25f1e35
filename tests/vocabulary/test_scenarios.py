"""The four scenarios on a byte-level and a SentencePiece tokenizer."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lepta.cli import app
from lepta.core.errors import LeptaError
from lepta.core.output import read_manifest
from lepta.text.sources import read_documents
from lepta.vocabulary.build import build_vocabulary, count_corpus, save_vocabulary
from lepta.vocabulary.check import OTHER_TEXT
from lepta.vocabulary.families import SentencePieceUnigram, read_vocabulary
from lepta.vocabulary.settings import ID_MAP
from lepta.vocabulary.source import open_tokenizer
from lepta.vocabulary.start import kept_tokens
from lepta.vocabulary.tokenizer_json import merge_pairs
from lepta.vocabulary.tokens import Kind
from lepta.vocabulary.words import weigh

SOURCES = ["tiny_llama3", "mistral"]
KEPT = {"tiny_llama3": 2_000, "mistral": 8_000}
ADDED = 300
BUILT = [
    (source, scenario, numbers)
    for source in SOURCES
    for scenario, numbers in (
        ("extended", {"add": ADDED}),
        ("bpe", {"size": 1_200}),
        ("unigram", {"size": 1_400}),  # a hundred of them for signs that the corpus does not have
        ("optimized", {"add": ADDED, "keep": KEPT[source]}),
    )
]
quick = settings(max_examples=150, deadline=None)
MIXED = st.text(max_size=50) | st.text(alphabet="абвЁ ёtheQ\n\t\r\x00\x1f№«—»1234é漢🫠\u200d\u0301.", max_size=50)


@pytest.fixture(scope="module", params=BUILT, ids=lambda case: f"{case[0]}-{case[1]}")
def built(request, build):
    """Old tokenizer, new tokenizer and the scenario that led from one to the other."""
    name, scenario, numbers = request.param
    old = request.getfixturevalue(name)
    new = build(old, scenario, **numbers)
    return old, new, scenario


@pytest.fixture(scope="module", params=SOURCES)
def source(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def vocabularies(built):
    return built[0].vocabulary(), built[1].vocabulary()


# What holds for all of them.


@quick
@given(text=MIXED)
def test_any_text_comes_back(vocabularies, text):
    """Except the sign that SentencePiece writes for a space."""
    new = vocabularies[1]
    if new.family != "byte-level BPE":
        text = text.replace("▁", "")
    assert new.tokenizer.decode(new.encode([text])[0], skip_special_tokens=False) == text


def test_awkward_text_comes_back(vocabularies, texts):
    new = vocabularies[1]
    literal = [
        "<0x41>",
        "a <0x0A> b",
        "\u2028\u0085\u3000\ufeff",
        "∎∎ ∎",
        "  x",
        "\n x\n",
        "\r\n\r\n",
        "if x:\n\t\treturn 1\n",
    ]
    for text in [*texts, *literal]:
        assert new.tokenizer.decode(new.encode([text])[0], skip_special_tokens=False) == text


def test_ids_are_dense_and_sizes_exact(built, vocabularies):
    (_, _, scenario), (old, new) = built, vocabularies
    specials = int((old.kinds == Kind.SPECIAL).sum())
    kept = KEPT["tiny_llama3" if old.size == 6_256 else "mistral"]
    sizes = {"extended": old.size + ADDED, "bpe": 1_200, "unigram": 1_400, "optimized": kept + specials + ADDED}
    assert new.size == sizes[scenario]
    assert (new.kinds != Kind.HOLE).all()
    assert len({(kind, data) for kind, data in zip(new.kinds.tolist(), new.bytes_of, strict=True)}) == new.size


def test_every_new_token_is_reachable(built, vocabularies):
    (_, _, scenario), (old, new) = built, vocabularies
    first = old.size if scenario == "extended" else 0
    known = set(old.bytes_of) if scenario == "optimized" else set()
    ids = [i for i in range(first, new.size) if new.kinds[i] == Kind.TEXT and new.bytes_of[i] not in known]
    assert len(ids) >= ADDED
    assert new.split([new.data(i) for i in ids]) == [[i] for i in ids]


def test_every_byte_has_a_token(vocabularies, single_ids):
    assert set(single_ids(vocabularies[1])) == set(range(256))


def test_special_tokens_roles_and_chat_template_are_kept(built, vocabularies):
    (source, result, _), (old, new) = built, vocabularies
    specials = [list(v.ids_by_bytes(Kind.SPECIAL)) for v in (old, new)]
    assert set(specials[0]) <= set(specials[1])
    assert set(specials[1]) - set(specials[0]) <= {b"<unk>"}
    ids = new.ids_by_bytes(Kind.SPECIAL)
    assert [new.encode([token.decode()]) for token in ids] == [[[i]] for i in ids.values()]
    assert result.chat_template == source.chat_template
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    assert [result.config.get(role) for role in roles] == [source.config.get(role) for role in roles]


def test_start_of_text_is_added_by_its_new_id(built, vocabularies):
    bos = built[0].config["bos_token"].encode()
    starts = [v.tokenizer.encode("мир").ids[0] == v.ids_by_bytes(Kind.SPECIAL)[bos] for v in vocabularies]
    assert starts == [True, True]


def test_added_tokens_decoder_names_the_new_ids(build, tiny_llama3):
    for scenario, numbers in (("bpe", {"size": 1_000}), ("optimized", {"add": 20, "keep": 2_000})):
        new = build(tiny_llama3, scenario, **numbers)
        decoder = {int(i): token["content"] for i, token in new.config["added_tokens_decoder"].items()}
        assert decoder == {token["id"]: token["content"] for token in new.spec["added_tokens"]}
        assert len(decoder) == 256


def test_same_ids_in_transformers(built, vocabularies, texts, tmp_path):
    from transformers import AutoTokenizer

    built[1].save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert loaded(texts, add_special_tokens=False)["input_ids"] == vocabularies[1].encode(texts)
    assert [loaded.decode(ids) for ids in vocabularies[1].encode(texts)] == texts
    assert loaded(["Привет"])["input_ids"] == [vocabularies[1].tokenizer.encode("Привет").ids]


def test_saved_folder_reads_back_with_its_id_map(built, vocabularies, tmp_path):
    (source, result, scenario), (old, new) = built, vocabularies
    facts = save_vocabulary(result, source, scenario, tmp_path)
    again = open_tokenizer(tmp_path)
    assert (again.spec, again.config, again.chat_template) == (result.spec, result.config, result.chat_template)
    written = json.loads((tmp_path / ID_MAP).read_text())
    assert (written["scenario"], len(written["ids"])) == (scenario, old.size)
    kept = {before: after for before, after in enumerate(written["ids"]) if after is not None}
    assert all(old.bytes_of[before] == new.bytes_of[after] for before, after in kept.items())
    script = {"script": "Cyrillic"} if scenario in ("extended", "optimized") else {}
    assert facts == {"old_size": old.size, "new_size": new.size, "kept": len(kept)} | script
    lost = {old.bytes_of[i] for i in range(old.size) if i not in kept}
    assert not lost & set(new.bytes_of)
    if scenario == "extended":
        assert written["ids"] == list(range(old.size))


def test_russian_takes_fewer_tokens(built, vocabularies, russian):
    old, new = vocabularies
    before, after = (sum(map(len, v.encode(russian))) for v in (old, new))
    assert after < before


def test_input_is_not_changed(build, source):
    before = json.dumps([source.spec, source.config])
    for scenario, numbers in (("extended", {"add": 10}), ("bpe", {"size": 1_000}), ("unigram", {"size": 1_000})):
        build(source, scenario, **numbers)
    assert json.dumps([source.spec, source.config]) == before


# What holds for single scenarios.


@pytest.fixture(scope="module")
def extension(build, source):
    return source, build(source, "extended", size=source.vocabulary().size + 200)


def test_extended_leaves_ids_merges_and_everything_else(extension):
    old, new = extension
    vocab, merges = new.spec["model"]["vocab"], new.spec["model"]["merges"]
    before = old.spec["model"]
    assert {token: vocab.get(token) for token in before["vocab"]} == before["vocab"]
    assert merges[: len(before["merges"])] == before["merges"]
    assert new.vocabulary().size == old.vocabulary().size + 200
    assert {k: v for k, v in new.spec.items() if k != "model"} == {k: v for k, v in old.spec.items() if k != "model"}


def test_extended_adds_only_cyrillic_or_parts_of_it(extension, partial_text):
    old, new = (tokenizer.vocabulary() for tokenizer in extension)
    tokens = [new.data(i) for i in range(old.size, new.size)]
    assert [t for t in tokens if not partial_text(t) and not regex.search(r"\p{Cyrillic}", t.decode())] == []
    letters = regex.compile(rb".*[\xd0-\xd3]", regex.DOTALL)
    assert [t for t in tokens if partial_text(t) and not letters.match(t)] == []


def test_extended_leaves_other_text(extension, english):
    old, new = (tokenizer.vocabulary() for tokenizer in extension)
    others = [*english, *OTHER_TEXT]
    assert new.encode(others) == old.encode(others)


@quick
@given(text=st.text(alphabet=st.characters(max_codepoint=0x3FF), max_size=60))
def test_extended_leaves_any_text_without_cyrillic(extension_vocabularies, text):
    old, new = extension_vocabularies
    assert new.encode([text]) == old.encode([text])


@pytest.fixture(scope="module")
def extension_vocabularies(extension):
    return tuple(tokenizer.vocabulary() for tokenizer in extension)


@pytest.mark.parametrize("name", SOURCES)
def test_extension_of_merges_written_as_strings_keeps_the_form(request, build, name, russian):
    source = request.getfixturevalue(name)
    model = source.spec["model"]
    strings = model | {"merges": [" ".join(pair) for pair in model["merges"]]}
    as_pairs = build(source, "extended", add=50)
    as_strings = build(
        type(source)(source.spec | {"model": strings}, source.config, source.chat_template, source.origin),
        "extended",
        add=50,
    )
    merges = as_strings.spec["model"]["merges"]
    assert all(isinstance(merge, str) for merge in merges)
    assert all(isinstance(merge, list) for merge in as_pairs.spec["model"]["merges"])
    assert merge_pairs(merges) == merge_pairs(as_pairs.spec["model"]["merges"])
    assert as_strings.vocabulary().encode(russian) == as_pairs.vocabulary().encode(russian)


@pytest.fixture(scope="module", params=["frequency", "rank"])
def kept(request, source):
    """Old vocabulary, what is kept of it, and how it was chosen."""
    vocabulary = source.vocabulary()
    table = count_corpus(vocabulary.word_rules(), ["starter:ru/valid", "starter:en/valid"])
    number = KEPT["tiny_llama3" if vocabulary.size == 6_256 else "mistral"]
    spec = kept_tokens(vocabulary, table.words, weigh(table), number, request.param)
    return vocabulary, read_vocabulary(spec), request.param, number, table


def names(vocabulary):
    return set(vocabulary.spec["model"]["vocab"])


def test_kept_tokens_are_exactly_so_many_and_in_their_old_order(kept):
    old, new, _, number, _ = kept
    ordinary = [i for i in range(new.size) if new.kinds[i] in (Kind.TEXT, Kind.BYTE)]
    assert len(ordinary) == number
    old_ids, new_ids = (v.spec["model"]["vocab"] for v in (old, new))
    order = [old_ids[token] for token in sorted(new_ids, key=new_ids.get) if token in old_ids]
    assert order == sorted(order)


def test_kept_tokens_are_closed_under_merges(kept):
    _, new, _, _, _ = kept
    vocab = names(new)
    pairs = merge_pairs(new.spec["model"]["merges"])
    formed = {left + right for left, right in pairs}
    assert all({left, right, left + right} <= vocab for left, right in pairs)
    ids = [i for i in range(new.size) if new.kinds[i] == Kind.TEXT]
    lost = [new.data(i) for i, ids in zip(ids, new.split([new.data(i) for i in ids]), strict=True) if ids != [i]]
    assert lost == []
    assert len(formed) > 1000


def test_text_of_kept_tokens_only_gets_the_mapped_ids(kept):
    old, new, _, _, table = kept
    new_id = {(int(k), d): i for i, (k, d) in enumerate(zip(new.kinds, new.bytes_of, strict=True))}
    mapped = [new_id.get((int(k), d)) for k, d in zip(old.kinds, old.bytes_of, strict=True)]
    words = [word.encode() for word in table.words]
    compared = 0
    for before, after in zip(old.split(words), new.split(words), strict=True):
        expected = [mapped[i] for i in before]
        if None not in expected:
            assert after == expected
            compared += 1
    assert compared > 100


def test_tokens_kept_by_frequency_cover_the_corpus_better_than_by_rank(kept, english):
    old, new, by, number, table = kept
    ordinary = [i for i in range(old.size) if old.kinds[i] in (Kind.TEXT, Kind.BYTE)]
    single = {i for i in ordinary if len(old.data(i)) == 1}
    remaining = set(new.bytes_of)
    kept_ids = {i for i in ordinary if old.bytes_of[i] in remaining} - single
    if by == "rank" and old.family == "byte-level BPE":
        assert {i for i in ordinary if i < number} <= kept_ids | single
    other = kept_tokens(old, table.words, weigh(table), number, "rank" if by == "frequency" else "frequency")
    lengths = {by: len(new.encode(english[-1:])[0]), "other": len(read_vocabulary(other).encode(english[-1:])[0])}
    assert (lengths[by] < lengths["other"]) == (by == "frequency")


def test_optimized_leaves_nothing_out_that_llama3_keeps_whole(llama3):
    """Some tokens of LLaMA-3 are reached as whole words only, not through merges."""
    vocabulary = llama3.vocabulary()
    new = read_vocabulary(kept_tokens(vocabulary, [" the", " of"], np.ones(2), 64_000, "frequency"))
    ids = [i for i in range(new.size) if new.kinds[i] == Kind.TEXT]
    assert new.split([new.data(i) for i in ids]) == [[i] for i in ids]
    assert len(ids) == 64_000


@pytest.mark.parametrize(
    ("scenario", "numbers"),
    [
        ("extended", {"add": 50}),
        ("optimized", {"add": 50, "keep": 1_000}),
        ("bpe", {"size": 900}),
        ("unigram", {"size": 900}),
    ],
)
def test_runs_of_spaces_that_are_added_tokens_stay_one_token(gemma, build, scenario, numbers):
    old, text = gemma.vocabulary(), "if x:" + 8 * " "
    new = build(gemma, scenario, corpus=[*CORPUS, "starter:en/valid"], **numbers).vocabulary()
    for vocabulary in (old, new):
        tokens = vocabulary.tokenizer.encode(text, add_special_tokens=False).tokens
        assert tokens[-1] == "▁" * 8
    assert new.size == numbers.get("size", new.size)
    if scenario == "optimized":
        assert new.size == 1_000 + 50 + int((old.kinds == Kind.SPECIAL).sum())


def test_unigram_holds_the_pieces_of_the_corpus_and_follows_its_weights(build, tiny_llama3, russian):
    new = build(tiny_llama3, "unigram", size=1_500).vocabulary()
    assert isinstance(new, SentencePieceUnigram)
    pieces = new.spec["model"]["vocab"]
    assert pieces[new.spec["model"]["unk_id"]][0] == "<unk>"
    unknown = new.spec["model"]["unk_id"]
    assert not any(unknown in ids for ids in new.encode([*russian, *OTHER_TEXT]))
    single = new.split([" и".encode(), " в".encode(), " не".encode(), " на".encode()])
    assert [len(ids) for ids in single] == [1] * 4


def test_scenarios_from_a_unigram_source(build, small_unigram, texts):
    new = build(small_unigram, "unigram", size=1_200).vocabulary()
    assert new.size == 1_200
    for text in texts:
        assert new.tokenizer.decode(new.encode([text])[0], skip_special_tokens=False) == text


def test_new_bpe_falls_back_to_bytes_even_if_the_old_one_did_not(build, train):
    path = train(model_type="bpe", byte_fallback=False, remove_extra_whitespaces=False)
    new = build(open_tokenizer(path), "bpe", size=1_000).vocabulary()
    text = "Привет 🦙 漢"
    assert new.tokenizer.decode(new.encode([text])[0], skip_special_tokens=False) == text


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_new_bpe_takes_away_the_space_that_metaspace_puts_before_text(train, build, scheme):
    source = open_tokenizer(train(model_type="bpe", remove_extra_whitespaces=False))
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, spaces]}
    changed = source.spec | {"normalizer": None, "pre_tokenizer": spaces, "decoder": decoder}
    built = build(replace(source, spec=changed), "bpe", size=900).vocabulary()
    assert built.tokenizer.decode(built.encode(["Привет, мир!"])[0]) == "Привет, мир!"


def test_words_of_a_list_are_cut_as_the_tokenizer_cuts_text(build, tiny_llama3):
    """A merge across "it" and "'s" would make tokens that text never gives."""
    pytest.importorskip("wordfreq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lepta.text.sources.FREQUENT_WORDS", 3_000)
        new = build(tiny_llama3, "bpe", corpus=["wordfreq:en"], size=2_000).vocabulary()
    ids = [i for i in range(new.size) if new.kinds[i] == Kind.TEXT]
    splits = new.split([new.data(i) for i in ids])
    assert [new.data(i) for i, split in zip(ids, splits, strict=True) if split != [i]] == []


def test_same_corpus_gives_the_same_vocabulary(build, tiny_llama3):
    for scenario, size in (("bpe", 900), ("unigram", 900), ("optimized", 4_000), ("extended", 6_400)):
        assert build(tiny_llama3, scenario, size=size).spec == build(tiny_llama3, scenario, size=size).spec


@pytest.mark.parametrize(
    ("name", "word"),
    [("smollm2", "ab"), ("llama3", "перевод"), ("mistral", "перевод"), ("mistral", "а"), ("small_unigram", "перевод")],
)
def test_a_word_of_a_megabyte_takes_seconds(request, name, word):
    vocabulary = request.getfixturevalue(name).vocabulary()
    text = word * (1_000_000 // len(word.encode()))
    vocabulary.encode(["x"])
    start = time.process_time()
    [ids] = vocabulary.encode([text])
    [split] = vocabulary.split([text.encode()])
    assert time.process_time() - start < 20
    assert b"".join(map(vocabulary.data, ids)).strip() == text.encode()
    assert b"".join(map(vocabulary.data, split)) == text.encode()


@pytest.mark.parametrize(("scenario", "size"), [("extended", 6_300), ("unigram", 800)])
def test_a_word_of_a_megabyte_in_the_corpus_takes_seconds(tmp_path, tiny_llama3, scenario, size):
    """In a process of its own, for it must not take the machine's memory either."""
    (tmp_path / "old").mkdir()
    tiny_llama3.save(tmp_path / "old")
    (tmp_path / "long.txt").write_text("длина" * 100_000, encoding="utf-8")
    corpus = ["--corpus", "starter:ru/valid", "--corpus", "long.txt"]
    done = vocab_build(
        "--tokenizer",
        "old",
        *corpus,
        "--scenario",
        scenario,
        "--size",
        str(size),
        cwd=tmp_path,
        timeout=60,
        memory=4 << 30,
    )
    assert done.returncode == 0, done.stderr
    assert open_tokenizer(tmp_path / "out").vocabulary().size == size


CORPUS = ["starter:ru/valid"]


def test_an_automatic_size_says_why(tiny_model_folder, tiny_tokenizer, tmp_path):
    model = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)
    arguments = ["--tokenizer", str(model), "--corpus", "starter:ru/valid", "--size", "auto"]
    command = ["vocab", "build", *arguments, "--output", str(tmp_path / "new")]
    said = " ".join(CliRunner().invoke(app, command, catch_exceptions=False).stdout.split())
    added = read_manifest(tmp_path / "new")["facts"]["added"]
    assert open_tokenizer(tmp_path / "new").vocabulary().size == 4_000 + added
    assert f"Taken: {added:,}, the fewest with which text costs at most 1% more" in said and "-0.00%" not in said
    best, share = regex.search(r"at its cheapest \(([\d,]+): ([\d.]+)%\)", said).groups()
    assert int(best.replace(",", "")) >= added and float(share) < 100


# Bad input.


@pytest.mark.parametrize(
    ("name", "scenario", "numbers", "words"),
    [
        ("tiny_llama3", "extended", {}, "either `add` .* or `size`"),
        ("tiny_llama3", "extended", {"add": 1, "size": 9_000}, "either `add` .* or `size`"),
        ("tiny_llama3", "extended", {"size": 6_256}, "size: 6256; .*has 6,256 tokens already; expected more"),
        ("tiny_llama3", "extended", {"size": 5}, "size: 5; .*has 6,256 tokens already; expected more"),
        ("tiny_llama3", "extended", {"add": 90_000}, "corpus: only .* can be learned .* not 90,000; give more"),
        ("tiny_llama3", "extended", {"add": 5, "script": "Greek"}, "no word in the script Greek; give text"),
        ("tiny_llama3", "bpe", {"size": 512}, "size: 512; .*has 512 tokens already; expected more"),
        ("mistral", "bpe", {"size": 100}, r"size: 100; .*has \d+ tokens already; expected more"),
        ("tiny_llama3", "unigram", {"size": 500}, r"size: 500; special tokens, bytes .*expected more"),
        ("tiny_llama3", "unigram", {"add": 500}, "unigram replaces the vocabulary: give its whole `size`, not `add`"),
        ("tiny_llama3", "unigram", {"size": 50_000}, "corpus: .*give more text or ask for a smaller"),
        ("tiny_llama3", "unigram", {"size": 530}, "size"),
        ("tiny_llama3", "optimized", {"add": 5, "keep": 100}, r"keep: 100; expected from 256 .* to 5999"),
        ("tiny_llama3", "optimized", {"add": 5, "keep": 6_000}, r"keep: 6000; expected from 256 .* to 5999"),
        ("tiny_llama3", "extended", {"add": 5, "keep": 6_000}, "`keep` 6000: .*expected scenario optimized"),
        ("small_unigram", "extended", {"add": 5}, r"\.model: scenario extended needs merges.*scenario unigram"),
        ("small_unigram", "optimized", {"add": 5}, "scenario optimized needs merges"),
        ("small_unigram", "bpe", {"size": 2_000}, "scenario bpe needs merges"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_raise(request, build, name, scenario, numbers, words):
    with pytest.raises(LeptaError, match=words):
        build(request.getfixturevalue(name), scenario, **numbers)


@pytest.mark.parametrize(("scenario", "size"), [("extended", 6_256), ("optimized", 3_256), ("bpe", 500)])
def test_sizes_that_are_too_small_are_refused_before_any_text_is_read(build, tiny_llama3, scenario, size):
    with pytest.raises(LeptaError, match=rf"^size: {size}; the vocabulary to start from has [\d,]+ tokens already"):
        build(tiny_llama3, scenario, corpus=["no/such/text.txt"], size=size)


@pytest.mark.parametrize("scenario", ["extended", "optimized"])
def test_corpus_without_the_script_raises(build, tiny_llama3, scenario):
    with pytest.raises(LeptaError, match="corpus: no word in the script Cyrillic; give text of the target language"):
        build(tiny_llama3, scenario, corpus=["starter:en/valid"], add=10, script="Cyrillic")


@pytest.mark.parametrize("scenario", ["extended", "bpe", "unigram"])
def test_corpus_of_signs_and_digits_raises(build, tiny_llama3, scenario, write_lines):
    with pytest.raises(LeptaError, match="corpus"):
        build(tiny_llama3, scenario, corpus=[str(write_lines("a.txt", ["1 2 3 !"]))], size=9_000)


def vocab_build(*arguments, cwd, timeout=120, memory=None):
    command = [sys.executable, "-m", "lepta", "vocab", "build", "--output", "out", *arguments]
    return subprocess.run(
        command if memory is None else ["prlimit", f"--as={memory}", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        timeout=timeout,
    )


def test_command_line_writes_nothing_on_an_error_and_says_what_to_do(tmp_path, tiny_llama3):
    (tmp_path / "old").mkdir()
    tiny_llama3.save(tmp_path / "old")
    (tmp_path / "cp1251.txt").write_bytes("Привет, мир. ".encode("cp1251") * 100)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    for tokenizer, arguments, words in (
        ("old", ["--corpus", "cp1251.txt", "--add", "10"], "cp1251.txt: byte 0 is not UTF-8; convert"),
        ("old", ["--corpus", "starter:ru/valid", "--size", "100"], "has 6,256 tokens already; expected more"),
        ("empty", ["--corpus", "starter:ru/valid", "--add", "10"], "empty: no tokenizer.json"),
    ):
        done = vocab_build("--tokenizer", tokenizer, *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("lepta: ")
        assert words in last
        assert "Traceback" not in done.stderr
        assert sorted(tmp_path.iterdir()) == before


def test_command_line_and_python_write_tokenizer_id_map_and_manifest(tmp_path, tiny_llama3, monkeypatch):
    (tmp_path / "old").mkdir()
    tiny_llama3.save(tmp_path / "old")
    documents = "\n".join(read_documents(CORPUS))
    (tmp_path / "text.txt").write_text(documents, encoding="utf-8")
    done = vocab_build("--tokenizer", "old", "--corpus", "text.txt", "--add", "10", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["old_size"], facts["new_size"], facts["kept"]) == (6_256, 6_266, 6_256)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["facts"]["script"], facts["script"]) == ("Cyrillic", "Cyrillic")
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"tokenizer.json", "tokenizer_config.json", ID_MAP}
    assert open_tokenizer(tmp_path / "out").vocabulary().size == 6_266
    monkeypatch.chdir(tmp_path)
    (tmp_path / "again").mkdir()
    save_vocabulary(build_vocabulary("old", ["text.txt"], add=10), "old", "extended", "again")
    assert json.loads((tmp_path / "again" / "manifest.json").read_text()) == manifest


def test_corpus_in_another_encoding_raises_from_python(tiny_llama3, tmp_path):
    (tmp_path / "a.txt").write_bytes("Привет".encode("cp1251"))
    with pytest.raises(LeptaError, match=r"a\.txt: byte 0 is not UTF-8; convert"):
        build_vocabulary(tiny_llama3, [str(tmp_path / "a.txt")], "bpe", size=2_000)
