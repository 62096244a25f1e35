"""Rows with the fields of the published datasets become ours."""

import pytest

from lepta.core.errors import LeptaError
from lepta.darumeru import hub
from lepta.darumeru.subjects import SUBJECTS

OPTIONS = {"option_a": "раз", "option_b": "два", "option_c": "три", "option_d": "четыре"}
MERA = {
    "rummlu": ({"text": "Сколько?", "subject": "алгебра", **OPTIONS}, "B", {"id": 7, "domain": "algebra"}),
    "multiq": (
        {"question": "Где?", "text": "Второй текст.", "support_text": "Первый текст."},
        [{"label": "passage", "segment": "Первый", "length": 6, "offset": 0}, {"segment": "Первый"}],
        {"id": 7, "bridge_answers": []},
    ),
    "parus": ({"premise": "Дождь.", "choice1": "Лужи.", "choice2": "Снег."}, "1", {"task": "effect", "id": 7}),
    "rcb": ({"premise": "Текст.", "hypothesis": "Мысль."}, "3", {"verb": "быть", "id": 7}),
    "ruopenbookqa": ({"question": "Что?", **OPTIONS}, "D", {"id": 7}),
    "ruworldtree": ({"question": "Что?", **OPTIONS}, "A", {"id": 7, "exam_name": "x"}),
    "rwsd": (
        {"text": "Кот ел, он сыт.", "span1_text": "Кот", "span1_index": 0, "span2_text": "он", "span2_index": 2},
        "Да",
        {"id": 7},
    ),
    "use": (
        {"task": "Найдите.", "text": "Текст", "choices": "1) а\n2) б\n3) в", "additional_text": ""},
        "1,3",
        {"id_task": "16", "variant": 4, "score": 2, "type": "multiple_choice_independent_options", "id": 7},
    ),
}


@pytest.fixture
def fetched(monkeypatch):
    """Rows to ask and examples, where each published split has these records."""

    def fetch(name, *records):
        monkeypatch.setattr(hub, "_published", lambda repository, config, split: list(records))
        return hub.fetch(name)

    return fetch


@pytest.fixture
def row_of(fetched):
    """The row of a record of MERA's with some of its parts changed."""

    def row_of(name, **changes):
        inputs, outputs, meta = MERA[name]
        record = {"inputs": inputs, "outputs": outputs, "meta": meta, "messages": []} | changes
        return fetched(name, record)[0][0]

    return row_of


@pytest.mark.parametrize("name", MERA)
def test_mera(row_of, name):
    row = row_of(name)
    assert row.id == "7"
    if name != "use":
        assert row.label in ("A", "B", "D", "1", "3", "Да", "")


def test_mera_fields(row_of):
    assert row_of("rummlu").choices == ("раз", "два", "три", "четыре")
    assert row_of("multiq").context == "Первый текст.\n\nВторой текст." and row_of("multiq").answers == ("Первый",)
    exam = row_of("use")
    assert (exam.kind, exam.points, exam.choices, exam.unit) == ("choice", 2, ("1) а", "2) б", "3) в"), "variant 4")


def test_exam_kinds(row_of):
    meta = MERA["use"][2]
    text = row_of("use", outputs="вовсе,совсем", meta=meta | {"type": "text", "id_task": "13"})
    assert text.answers == ("вовсе", "совсем") and text.points == 1
    matching = row_of("use", outputs="5,1,2", meta=meta | {"type": "matching", "id_task": "8"})
    assert matching.kind == "matching" and matching.points == 3


def test_errors_name_the_row(row_of):
    with pytest.raises(LeptaError, match=r"parus test, row 0: no field 'inputs\.premise'; inputs has choice1"):
        row_of("parus", inputs={"choice1": "x"})
    with pytest.raises(LeptaError, match="darumeru parus test, row 0: answer"):
        row_of("parus", outputs="4")


def test_other_sources(fetched):
    mmlu = {"question_ru": "Что?", "question_en": "What?", "choices_ru": list("абвг"), "choices_en": list("abcd")}
    english, russian = (fetched(name, mmlu | {"answer": 2})[0] for name in ("mmlu_en", "mmlu_ru"))
    assert {row.stratum for row in english} == set(SUBJECTS)
    assert (english[0].answer, english[0].choices, russian[0].choices) == ("C", tuple("abcd"), tuple("абвг"))
    assert [row.unit for row in russian] == [row.unit for row in english]  # drawn together in a bootstrap
    rucola = fetched("rucola", {"id": 3, "sentence": "Так.", "label": 1})[0][0]
    assert (rucola.id, rucola.answer) == ("3", "1")
    with pytest.raises(LeptaError, match="rucola main validation, row 0: the answer is not published"):
        fetched("rucola", {"id": 3, "sentence": "Так.", "label": None})
    article = {"src_sents": ["Раз.", "Два."], "summary_sents": ["И", "раз."], "extractive_summary": [0]}
    test, shots = fetched("gazeta", *[article] * 501)
    assert len(test) == 500 and test[0].summary == "И раз." and shots[0].id == "prompt-0"
    copies = fetched("copy_ru", {"inputs": {"text": "Раз. Два."}, "outputs": ""})[0]
    assert [row.kind for row in copies] == ["sentence", "paragraph"]


def test_fetch(monkeypatch):
    """All configurations are asked for by the names that the hub has."""
    asked = []

    def split(repository, config, name):
        asked.append((repository, config, name))
        if repository == "RussianNLP/rucola":
            return [{"id": n, "sentence": f"Так {n}.", "label": n % 2} for n in range(12)]
        if repository == hub.MERA_REPOSITORY and config.startswith("cp_"):
            return [{"inputs": {"text": f"Раз {config}. Два."}}]
        inputs, outputs, meta = MERA[config]
        return [{"inputs": inputs, "outputs": outputs, "meta": meta}]

    monkeypatch.setattr(hub, "_published", split)
    test, shots = hub.fetch("rucola")
    assert len(test) == 12 and sorted(row.answer for row in shots) == ["0", "0", "0", "1", "1"]
    test, shots = hub.fetch("copy_en")
    assert [row.kind for row in test] == ["sentence", "paragraph"]
    assert (hub.MERA_REPOSITORY, "cp_para_en", "prompt") in asked
    for name in MERA:
        test, shots = hub.fetch(name)
        assert test[0].id != shots[0].id
