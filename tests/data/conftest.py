from pathlib import Path

import pandas as pd
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


@pytest.fixture
def recbole(tmp_path: Path) -> Path:
    """A RecBole folder: three users, three films, five ratings."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "tiny.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t10\t5\t100\n1\t11\t3\t200\n2\t10\t4\t150\n3\t12\t1\t50\n2\t12\t5\t300\n"
    )
    (folder / "tiny.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '10\tUsual Suspects, The\t1995\tCrime\n11\tMisérables, Les\t1995\tDrama\n12\t"NA"\t\tunknown\n',
        encoding="utf-8",
    )
    return folder


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": [1, 1, 2, 2],
            "item_id": [10, 11, 10, 12],
            "rating": [5.0, 3.0, 4.0, 2.0],
            "timestamp": [100, 200, 150, 300],
            "title": ["Alien", "NA", "Alien", "Brazil"],
            "comment": ["", "", "", ""],
        }
    )
