import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, no special tokens around the text, a pad token."""
    return make_tokenizer(pad_token="<pad>")


@pytest.fixture
def llama_like() -> PreTrainedTokenizerFast:
    """One token a character, BOS in front and EOS behind, no pad token."""
    return make_tokenizer(template="<s> $A </s>")


def make_tokenizer(template: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    vocab = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", *map(chr, range(10, 127))])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, vocab[name]) for name in ("<s>", "</s>")]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **special)
