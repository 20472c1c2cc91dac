"""Texts by a language model: written in batches, one chosen among several, and the vectors of texts."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SHORTEST = 10  # characters: what is shorter says nothing


class Written(NamedTuple):
    """A text as the model wrote it, and how many tokens it has."""

    text: str
    tokens: int


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of what the model is: names, shapes and 64 values of every parameter, without reading all of them."""
    found = hashlib.sha256(type(model).__name__.encode())
    for name, one in model.named_parameters():
        some = one.detach().flatten()[:: max(1, one.numel() // 64)]
        found.update(f"{name} {list(one.shape)} {one.dtype}".encode() + some.float().cpu().numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def write(
    generate: Callable[..., Tensor],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    candidates: int,
    seed: int,
    device: torch.device,
) -> list[list[Written]]:
    """`candidates` texts of at most `new_tokens` tokens for each prompt, drawn at temperature 0.6 from the 50
    likeliest tokens.

    generate: transformers' generate of a causal LM, or the like. The prompts are one batch, padded on the left. The
    same batch and seed give the same texts; the global random state is left as it was.
    """
    tokens = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    tokens = tokens.to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        found = generate(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=0.6,
            top_k=50,
            num_return_sequences=candidates,
            pad_token_id=tokenizer.pad_token_id,
        )
    new = found[:, tokens["input_ids"].shape[1] :]
    lengths = (new != tokenizer.pad_token_id).sum(1).tolist()
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    written = [Written(text, length) for text, length in zip(texts, lengths, strict=True)]
    return [written[start : start + candidates] for start in range(0, len(written), candidates)]


@torch.no_grad()
def text_vectors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int = 32
) -> Iterator[tuple[list[int], Tensor]]:
    """For batches of similar length, which of the texts they hold, and the mean of the last hidden states over the
    tokens of each, fp32 [b, h]."""
    if not texts:  # which tokenizers do not take
        return
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(texts)), key=lambda row: len(encoded[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(1, *(len(encoded[row]) for row in rows))
        mask = torch.tensor([[1] * len(encoded[row]) + [0] * (width - len(encoded[row])) for row in rows])
        ids = torch.tensor([encoded[row] + [0] * (width - len(encoded[row])) for row in rows])
        hidden = model.base_model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))[0]
        weights = mask.to(hidden.device)[..., None]
        # A text without a token has a vector too: zero, which centring makes the mean of none.
        yield rows, ((hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)).cpu()


def centred(vectors: Tensor) -> Tensor:
    """(v - mean of all) / |v - mean of all|, fp32 [n, h]: the vectors of a language model all point one way as they
    are. A vector that is the mean is zero."""
    return functional.normalize(vectors.float() - vectors.float().mean(0), dim=1)


def quality(text: str, vector: Tensor, asked: Tensor, decision: Tensor) -> float:
    """How good a text is, from 0 to 1: the mean of the share of its 3-grams that are not repeated, its cosine with what
    was asked and with the decision in words, and its length up to 40 words. 0 for a text of under 10 characters.

    vector, asked, decision: [h], of the text, of the prompt and of the decision.
    """
    words = text.lower().split()
    if len(text) < _SHORTEST:
        return 0.0
    grams = list(zip(words, words[1:], words[2:], strict=False))
    fresh = len(set(grams)) / len(grams) if grams else 1.0
    cosines = [(1 + float(functional.cosine_similarity(vector, other, 0))) / 2 for other in (asked, decision)]
    return (fresh + sum(cosines) + min(1.0, len(words) / 40)) / 4
