"""A tokenizer of whole words, for tiny random models."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ASKED = ["<pad>", "<s>", "</s>", "<unk>", *"Liked Asked Answer . ? : , Yes No none so far film".split(), '"']
SPECIAL = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_tokenizer(words: Sequence[str] = ASKED, **special: str) -> PreTrainedTokenizerFast:
    """Ids in the order of the words, the numbers up to 39 behind them; special: names of tokens, `SPECIAL` if none."""
    vocabulary = {word: place for place, word in enumerate([*words, *map(str, range(40))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(special or SPECIAL))
