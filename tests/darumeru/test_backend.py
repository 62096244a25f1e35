"""Scores are those of the exact ids, whatever is read once; texts end where they should."""

import itertools

import pytest
import torch

from lepta.core.errors import LeptaError
from lepta.darumeru.backend import GenerationRequest, Question
from lepta.darumeru.data import load_dataset
from lepta.darumeru.tasks import tasks
from lepta.inference.scoring import PASS, TOKENS, Branch, Scorer, common, in_batches

LABELS = (" A", " B", " C", " D"), (" 0", " 1"), (" 1", " 2", " 3"), (" Да", " Нет"), (" yes indeed", " no", " 10")
FAMILIES = ["tiny_llama3", "mistral", "tiny_qwen", "smollm2"]


def full(backend, text):
    """Log-probability of each token of a text given those before it, by one plain pass."""
    ids = torch.tensor(backend.ids([text]))
    with torch.no_grad():
        logits = torch.log_softmax(backend._model(ids).logits[0].float(), -1)
    return ids[0].tolist(), [float(logits[n, token]) for n, token in enumerate(ids[0, 1:])]


def expected(backend, question, mean=False):
    """Log-likelihood of continuations by one plain pass for each."""
    prompt = full(backend, question.prompt)[0]
    texts = [full(backend, question.prompt + text) for text in question.continuations]
    start = common([prompt, *(ids for ids, _ in texts)])
    starts = [common([prompt, ids]) if mean else start for ids, _ in texts]
    kept = [values[place - 1 :] for (_, values), place in zip(texts, starts, strict=True)]
    return tuple(sum(values) / (len(values) if mean else 1) for values in kept)


def prompts_of(backend, name, shots=2, number=4):
    task = tasks()[name]
    dataset = load_dataset(task.dataset)
    samples = task.samples(dataset)[:number]
    return [Question(backend.render(task.messages(s, task.shots(dataset, s, shots))), s.continuations) for s in samples]


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_have_their_full_likelihood(backend_of, family):
    """Digits too, which some tokenizers cut off their space; labels of several tokens too."""
    backend = backend_of(family)
    questions = [
        Question(prompt, labels)
        for prompt in ("Сколько будет дважды два?\n\nОтвет:", "Вопрос. Скажите,\n\nВерно:", "Сколько?\n\nНомер:")
        for labels in LABELS
    ]
    backend.share([question.prompt for question in questions])
    for question, found in zip(questions, backend.choose(questions), strict=True):
        assert found == pytest.approx(expected(backend, question), abs=1e-4)
        assert len(set(found)) == len(found)


@pytest.mark.parametrize("split", [False, True])
@torch.no_grad()
def test_labels_are_told_apart_in_16_bits(tiny_model_folder, tiny_tokenizer, split):
    """Logits of 16 bits have steps of 0.06 and more where they are large: many labels would be equally likely."""
    from lepta.models.load import load_model
    from lepta.models.split import split_rows

    model = load_model(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer), torch.bfloat16)
    model.get_output_embeddings().weight *= 60
    head = model.get_output_embeddings().weight.float()
    if split:
        split_rows(model, 3000)
    ids, targets = (5, 6, 7, 8), range(2900, 3100)
    found = [values[0] for values in Scorer(model).score([Branch((*ids, target), len(ids)) for target in targets])]
    state = model.base_model(torch.tensor([ids], device=model.device)).last_hidden_state[0, -1].float()
    logits = (head @ state)[list(targets)].cpu()
    assert logits.abs().max() > 16 and len(set(logits.bfloat16().tolist())) < len(targets)
    assert len(set(found)) == len(targets)
    off = torch.tensor(found) - logits
    assert (off - off.mean()).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["rucola", "rwsd", "mmlu_ru"])
def test_a_shared_prefix_changes_nothing(backend_of, name):
    backend, plain = backend_of(), backend_of(reuse=False)
    questions = prompts_of(backend, name)
    backend.share([question.prompt for question in questions])
    assert len(backend._scorer._shared) > 40
    found = backend.choose(questions)
    for mine, theirs, question in zip(found, plain.choose(questions), questions, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
        assert mine == pytest.approx(expected(backend, question), abs=1e-4)
    other = prompts_of(backend, "parus", shots=0)[0]  # what was announced and does not come does no harm
    assert backend.choose([other])[0] == pytest.approx(expected(backend, other), abs=1e-4)


def test_one_row_for_labels_of_one_token(backend_of, monkeypatch):
    """Labels that differ in their last token are read once."""
    backend = backend_of()
    seen = []
    outputs = backend._scorer._outputs

    def counted(layers, batch):
        seen.append(len(batch))
        return outputs(layers, batch)

    monkeypatch.setattr(backend._scorer, "_outputs", counted)
    questions = prompts_of(backend, "ruworldtree")
    backend.share([question.prompt for question in questions])
    backend.choose(questions)
    assert sum(seen) == len(questions)


@pytest.mark.parametrize("family", ["mistral", "smollm2"])  # SentencePiece and bytes; a larger one only takes longer
def test_sentences_behind_one_document(backend_of, family):
    backend = backend_of(family)
    questions = prompts_of(backend, "summary_extractive", shots=0, number=2)
    backend.share([question.prompt for question in questions])
    for question in questions:
        assert backend.sentence_logprobs(question) == pytest.approx(expected(backend, question, mean=True), abs=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        [13, 16, 16, 17, 17, 18, 26, 41, 49, 93, 94, 101],  # sentences of an article
        [0, 5, 5, 900, TOKENS, 3 * TOKENS],
        [300] * 100,
        [],
    ],
)
def test_batches_have_little_padding(sizes):
    """Each row is in one batch; none of all ways to cut a few rows is read sooner."""
    rows = [(0,) * size for size in sizes]
    batches = in_batches(rows, TOKENS)
    assert [row for batch in batches for row in batch] == rows
    assert all(len(batch) == 1 or len(batch) * len(batch[-1]) <= TOKENS for batch in batches)

    def cost(parts):
        fits = all(len(part) == 1 or len(part) * part[-1] <= TOKENS for part in parts)
        return sum(len(part) * part[-1] + PASS for part in parts) if fits else float("inf")

    if 0 < len(sizes) < 20:
        ways = ([n for n in range(1, len(sizes)) if cut >> n & 1] for cut in range(0, 1 << len(sizes), 2))
        every = ([sizes[a:b] for a, b in itertools.pairwise([0, *way, len(sizes)])] for way in ways)
        assert cost([[len(row) for row in batch] for batch in batches]) == min(map(cost, every))


def test_a_document_is_read_once_for_all_its_sentences(backend_of):
    backend = backend_of()
    (question,) = prompts_of(backend, "summary_extractive", shots=0, number=1)
    seen = []
    handle = backend._model.base_model.register_forward_pre_hook(
        lambda module, inputs, options: seen.append(options["input_ids"].numel()), with_kwargs=True
    )
    backend.sentence_logprobs(question)
    handle.remove()
    document = backend.count_tokens(question.prompt)
    sentences = sum(len(backend.tokens(text)) for text in question.continuations)
    assert document < sum(seen) < document + 1.2 * sentences < 3 * document  # padding is work too


def test_no_logits_but_those_needed(backend_of):
    backend = backend_of()
    head = backend._model.get_output_embeddings()
    seen = []
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    backend.choose([Question("Длинный вопрос, " * 30 + "\n\nОтвет:", (" A", " B"))])
    handle.remove()
    assert seen == [1]  # " A" and " B" are one token each


def test_equal_labels_are_refused(backend_of):
    with pytest.raises(LeptaError, match="same tokens"):
        backend_of().choose([Question("Ответ:", (" A", " A"))])


def test_chat_and_plain_turns(backend_of):
    messages = [
        {"role": "user", "content": "Раз?"},
        {"role": "assistant", "content": "Ответ: два"},
        {"role": "user", "content": "Три?"},
    ]
    begun = [*messages, {"role": "assistant", "content": "Ответ:"}]
    plain, chat = backend_of(), backend_of(chat=True)
    assert plain.render(begun) == "Раз?\n\nОтвет: два\n\nТри?\n\nОтвет:"
    assert plain.render(messages) == "Раз?\n\nОтвет: два\n\nТри?\n\n"
    assert chat.render(begun).endswith("<|im_start|>user\nТри?<|im_end|>\n<|im_start|>assistant\nОтвет:")
    assert chat.render(messages).endswith("<|im_start|>assistant\n")
    with pytest.raises(LeptaError, match="no chat template"):
        backend_of("tiny_qwen", chat=True)


def test_a_template_that_drops_turns_is_refused(backend_of, monkeypatch):
    backend = backend_of(chat=True)
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(backend._tokenizer, "chat_template", template)
    turns = [{"role": role, "content": f"это {n}"} for n, role in enumerate(["user", "assistant", "user"])]
    with pytest.raises(LeptaError, match="leaves out a turn of the assistant"):
        backend.render(turns)
    later = "{% for m in messages[1:] %}{{ m.role }}: {{ m.content }}{% endfor %}"
    monkeypatch.setattr(backend._tokenizer, "chat_template", later)
    with pytest.raises(LeptaError, match="leaves out a turn of the user"):
        backend.render([{"role": "user", "content": "да"}, *turns, {"role": "user", "content": "да или нет"}])


def test_a_template_that_trims_turns_is_taken(backend_of, monkeypatch):
    backend = backend_of(chat=True)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    monkeypatch.setattr(backend._tokenizer, "chat_template", template)
    assert backend.render([{"role": "user", "content": "Мама мыла раму. \n"}]) == "user: Мама мыла раму.\n"


def test_generation_in_a_batch_is_generation_alone(backend_of):
    backend = backend_of()
    requests = [
        GenerationRequest("Раз, два, три"),
        GenerationRequest("Жили-были старик со старухой у самого синего моря и\n\n"),
    ]
    together = backend.generate(requests, 12)
    assert together == [backend.generate([request], 12)[0] for request in requests]
    assert all(0 < written.emitted <= 12 for written in together)


def test_settings_in_a_models_files_change_nothing(backend_of, monkeypatch):
    """They may draw at random, or punish a copy for repeating its text."""
    backend = backend_of()
    requests = [GenerationRequest("Раз, два, три")]
    expected = backend.generate(requests, 12)
    drawing = {"do_sample": True, "temperature": 5.0, "top_k": 0, "top_p": 0.9, "num_beams": 3}
    for name, value in {**drawing, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_new_tokens": 3}.items():
        monkeypatch.setattr(backend._model.generation_config, name, value)
    assert [backend.generate(requests, 12) for _ in range(3)] == [expected] * 3


def test_stops_cut_text_and_tokens(backend_of):
    backend = backend_of()
    whole = backend.generate([GenerationRequest("Раз, два, три")], 12)[0]
    stop = whole.text[len(whole.text) // 2 :][:3]
    cut = backend.generate([GenerationRequest("Раз, два, три", (stop,))], 12)[0]
    assert cut.text == whole.text[: whole.text.index(stop)].strip() and cut.emitted < whole.emitted
    ids = backend.tokens(whole.text)
    assert backend._decode(ids) == whole.text


def test_tokens_of_a_text_that_is_cut_are_found_soon(backend_of, monkeypatch):
    """The shortest start of what was written that holds the text, without decoding every start."""
    backend = backend_of()
    ids = backend.tokens("Раз, два, три, четыре, пять, вышел зайчик погулять. " * 20)
    decoded, decode = [], backend._decode
    monkeypatch.setattr(backend, "_decode", lambda ids: decoded.append(ids) or decode(ids))
    for length in (0, 1, 40, 333):
        decoded.clear()
        written = backend._completion(ids, GenerationRequest("", longest=length))
        text = decode(ids)[:length]
        assert written.emitted == next(n for n in range(len(ids)) if decode(ids[:n]).startswith(text))
        assert len(decoded) < 15


def test_line_breaks_before_an_answer_do_not_end_it(backend_of, monkeypatch):
    assert GenerationRequest("", ("\n",)).cut("\nМосква\nКиев") == "\nМосква"
    assert GenerationRequest("", ("\n\n",)).cut("\n\nРаз.\n\nДва.") == "\n\nРаз."
    assert GenerationRequest("", ("\n",), longest=2).cut("\n\n\n") == "\n\n"
    backend = backend_of()
    written = torch.tensor([backend.tokens("\n \nМосква\nКиев")])
    monkeypatch.setattr(backend._model, "generate", lambda ids, **options: torch.cat([ids, written], 1))
    found = backend.generate([GenerationRequest("Столица?", ("\n",))], 64)[0]
    assert found.text == "Москва" and found.emitted == len(backend.tokens("\n \nМосква"))


def test_a_text_that_is_too_long_is_cut(backend_of):
    backend = backend_of()
    whole = backend.generate([GenerationRequest("Раз, два, три")], 40)[0]
    cut, other = backend.generate(
        [GenerationRequest("Раз, два, три", longest=10), GenerationRequest("Раз, два, три")], 40
    )
    assert 5 < len(cut.text) <= 10 and whole.text.startswith(cut.text)
    assert cut.emitted < whole.emitted and other == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_after_a_shared_prefix_is_the_same(backend_of, family):
    """Padding stands between the examples, which are read once, and the questions."""
    task = tasks()["multiq"]
    dataset = load_dataset(task.dataset)
    texts = []
    for reuse in (True, False):
        backend = backend_of(family, reuse=reuse)
        prompts = [backend.render(task.messages(s, task.shots(dataset, s, 2))) for s in task.samples(dataset)[:5]]
        backend.share(prompts)
        texts.append(backend.generate([GenerationRequest(prompt) for prompt in prompts], 8))
        assert len(backend._scorer._shared) > 100 or not reuse
    assert texts[0] == texts[1]


def test_a_live_model_stays_in_training(backend_of, loaded):
    model, _ = loaded()
    model.train()
    backend = backend_of()
    backend.choose([Question("Ответ:", (" A", " B"))])
    assert model.training
    model.eval()
