"""The foundation model before any training: a tokenizer that knows English, and a Llama with random weights."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.miniature.settings import Shape
from lepta.vocabulary.source import TokenizerSource

TEXT_END, TURN_END, PAD = "<|text|>", "<|end|>", "<|pad|>"
SPECIAL = [TEXT_END, TURN_END, PAD, "<|user|>", "<|assistant|>"]
CONTEXT = 1024
SHARPNESS = 4.0  # of the head that looks one token back
SLOW = 1 / 8  # radians a token
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
def set_induction_head(model: LlamaForCausalLM) -> None:
    """Set by hand the one circuit that models of this size find only after very many tokens: an induction head.

    It finds where the present token was before and says what came after it there (Olsson et al. 2022, arXiv
    2209.11895), so it copies. In the first layer head 0 looks one token back, whatever is there (its biases differ by
    one turn of the rotary embedding), and keeps a projection of that token in a subspace of its own. In the second,
    head 0 seeks the place that keeps the present token, and adds the token there to what is said next. The head starts
    as a copy of the embeddings, which are as large as what the layers add. All of it trains like the rest.
    """
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    size, width = first.head_dim, model.config.hidden_size
    head = slice(0, size)
    turn = model.model.rotary_emb.inv_freq.double()  # radians a token, of each pair of dimensions
    squared = SHARPNESS * size**0.5 / float((1 - turn.cos()).sum())  # neighbours are e^SHARPNESS times fainter
    first.q_proj.weight[head] = first.k_proj.weight[head] = 0
    first.q_proj.bias[head] = squared**0.5 * torch.cat([turn.cos(), -turn.sin()])
    first.k_proj.bias[head] = squared**0.5 * torch.cat([torch.ones_like(turn), torch.zeros_like(turn)])
    rotation, subspace = (torch.linalg.qr(torch.randn(width, width))[0] for _ in range(2))
    seen, said, kept = rotation[head], rotation[size : 2 * size], subspace[:, head]
    first.v_proj.weight[head], first.o_proj.weight[:, head] = seen, kept
    near = torch.cat([turn, turn])[:, None] < SLOW  # those that turn faster would tell places apart, not tokens
    second.q_proj.weight[head], second.k_proj.weight[head] = seen * near, kept.T * near
    second.v_proj.weight[head], second.o_proj.weight[:, head] = said, said.T
    embeddings = model.model.embed_tokens.weight
    model.lm_head.weight.copy_(embeddings)
    embeddings.mul_(width**0.5)


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
    set_induction_head(model)
    model.generation_config = GenerationConfig(
        bos_token_id=text_end, eos_token_id=[text_end, turn_end], pad_token_id=pad
    )
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model.num_parameters()
