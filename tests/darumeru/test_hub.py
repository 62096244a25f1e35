"""Rows with the fields of the published datasets become ours."""

import pytest

from lepta.core.errors import LeptaError
from lepta.darumeru import hub

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


def _row(name, **changes):
    inputs, outputs, meta = MERA[name]
    record = {"inputs": inputs, "outputs": outputs, "meta": meta, "messages": []} | changes
    return hub.converted(name, [record], hub.MERA_FIELDS[name], "hub")[0]


@pytest.mark.parametrize("name", MERA)
def test_mera(name):
    row = _row(name)
    assert row.id == "7"
    if name != "use":
        assert row.label in ("A", "B", "D", "1", "3", "Да", "")


def test_mera_fields():
    assert _row("rummlu").choices == ("раз", "два", "три", "четыре")
    assert _row("multiq").context == "Первый текст.\n\nВторой текст." and _row("multiq").answers == ("Первый",)
    exam = _row("use")
    assert (exam.kind, exam.points, exam.choices, exam.unit) == ("choice", 2, ("1) а", "2) б", "3) в"), "variant 4")


def test_exam_kinds():
    meta = MERA["use"][2]
    text = _row("use", outputs="вовсе,совсем", meta=meta | {"type": "text", "id_task": "13"})
    assert text.answers == ("вовсе", "совсем") and text.points == 1
    matching = _row("use", outputs="5,1,2", meta=meta | {"type": "matching", "id_task": "8"})
    assert matching.kind == "matching" and matching.points == 3


def test_errors_name_the_row():
    with pytest.raises(LeptaError, match=r"hub, row 0: KeyError 'premise'; it has inputs \(choice1\)"):
        _row("parus", inputs={"choice1": "x"})
    with pytest.raises(LeptaError, match="hub, row 0: answer"):
        _row("parus", outputs="4")


def test_other_sources():
    mmlu = {"question_ru": "Что?", "question_en": "What?", "choices_ru": list("абвг"), "choices_en": list("abcd")}
    row = hub.converted("mmlu_en", [mmlu | {"answer": 2}], hub.mmlu_fields("virology", "test", "en"), "hub")[0]
    assert (row.answer, row.choices, row.stratum) == ("C", tuple("abcd"), "virology")
    russian = hub.converted("mmlu_ru", [mmlu | {"answer": 2}], hub.mmlu_fields("virology", "test", "ru"), "hub")[0]
    assert russian.unit == row.unit  # drawn together in a bootstrap
    rucola = hub.converted("rucola", [{"id": 3, "sentence": "Так.", "label": 1}], hub.rucola_fields, "hub")[0]
    assert (rucola.id, rucola.answer) == ("3", "1")
    article = {"src_sents": ["Раз.", "Два."], "summary_sents": ["И", "раз."], "extractive_summary": [0]}
    assert hub.converted("gazeta", [article], hub.article_fields, "hub")[0].summary == "И раз."
    text = {"inputs": {"text": "Раз. Два."}, "outputs": ""}
    assert hub.converted("copy_ru", [text], hub.copy_fields("paragraph", "test"), "hub")[0].kind == "paragraph"


def test_fetch(monkeypatch):
    """All configurations are asked for by the names that the hub has."""
    asked = []

    def split(repository, config, name):
        asked.append((repository, config, name))
        if repository == hub.RUCOLA:
            return [{"id": n, "sentence": f"Так {n}.", "label": n % 2} for n in range(12)]
        if repository == hub.DARUMERU and config.startswith("cp_"):
            return [{"inputs": {"text": f"Раз {config}. Два."}}]
        inputs, outputs, meta = MERA[config]
        return [{"inputs": inputs, "outputs": outputs, "meta": meta}]

    monkeypatch.setattr(hub, "_split", split)
    test, shots = hub.fetch("rucola")
    assert len(test) == 12 and sorted(row.answer for row in shots) == ["0", "0", "0", "1", "1"]
    test, shots = hub.fetch("copy_en")
    assert [row.kind for row in test] == ["sentence", "paragraph"]
    assert (hub.DARUMERU, "cp_para_en", "prompt") in asked
    for name in hub.MERA_FIELDS:
        test, shots = hub.fetch(name)
        assert test[0].id != shots[0].id
