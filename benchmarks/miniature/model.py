"""The foundation model before any training: a tokenizer that knows English, and a Llama with random weights."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.miniature.settings import Shape
from lepta.checkpoints.publish import save_loaded_model
from lepta.vocabulary.source import TokenizerSource

TEXT_END, TURN_END, PAD = "<|text|>", "<|end|>", "<|pad|>"
SPECIAL = [TEXT_END, TURN_END, PAD, "<|user|>", "<|assistant|>"]
CONTEXT = 1024
SHARPNESS, FARTHEST = 4.0, 3  # of heads that look back; see `look_back`
# An answer follows a colon and a space, as what is asked about does: its first word is the same token that the prompt
# has, and comes after the same one, which is what induction heads look for.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|> {{ message['content'] }}"
    "{% else %}<|assistant|>: {{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>:{% endif %}"
)


def english_heavy(english: Sequence[str], russian: Sequence[str], share: float) -> Iterable[str]:
    """English passages with so large a share of Russian ones among them, by characters."""
    yield from english
    left = sum(map(len, english)) * share / (1 - share)
    for text in russian:
        if left <= 0:
            break
        left -= len(text)
        yield text


def train_tokenizer(texts: Iterable[str], size: int) -> TokenizerSource:
    """A byte-level BPE tokenizer of this size, with the markers of a conversation."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    roles = {"bos_token": TEXT_END, "eos_token": TEXT_END, "pad_token": PAD}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    return TokenizerSource(json.loads(tokenizer.to_str()), config, TEMPLATE)


@torch.no_grad()
def look_back(model: LlamaForCausalLM) -> None:
    """Have heads of the first layer look one, two, ... tokens back, whatever is there; the last head stays random.

    Copying needs such heads (the first half of an induction head), and models of this size find them only after tens of
    millions of tokens. Head h gets biases that differ by h + 1 turns of the rotary embedding, and no weights; all of
    them train like the rest.
    """
    attention, size = model.model.layers[0].self_attn, model.model.layers[0].self_attn.head_dim
    turn = model.model.rotary_emb.inv_freq.double()  # radians a token, of each pair of dimensions
    squared = SHARPNESS * size**0.5 / float((1 - turn.cos()).sum())  # so that neighbours are e^SHARPNESS times fainter
    for head in range(min(FARTHEST, model.config.num_attention_heads - 1)):
        rows, angle = slice(head * size, (head + 1) * size), (head + 1) * turn
        attention.q_proj.weight[rows] = attention.k_proj.weight[rows] = 0
        attention.q_proj.bias[rows] = squared**0.5 * torch.cat([angle.cos(), -angle.sin()])
        attention.k_proj.bias[rows] = squared**0.5 * torch.cat([torch.ones_like(turn), torch.zeros_like(turn)])


def write_random_model(shape: Shape, tokenizer: TokenizerSource, seed: int, folder: Path) -> int:
    """Write a Llama with random weights into an existing folder; returns how many weights it has."""
    torch.manual_seed(seed)
    text_end, turn_end, pad = range(3)  # special tokens have the first ids
    config = LlamaConfig(
        vocab_size=tokenizer.vocabulary().size,
        hidden_size=shape.width,
        intermediate_size=shape.width * 8 // 3 // 8 * 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        attention_bias=True,
        initializer_range=shape.width**-0.5,
        bos_token_id=text_end,
        eos_token_id=text_end,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    look_back(model)
    model.generation_config = GenerationConfig(
        bos_token_id=text_end, eos_token_id=[text_end, turn_end], pad_token_id=pad
    )
    save_loaded_model(model, tokenizer, folder)
    return model.num_parameters()
