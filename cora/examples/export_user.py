"""python -m cora.examples.export_user: a run of CoRA on made-up films, and one of its users as a PEFT adapter.

The language model is a tiny random Llama and the films are made up, so there is nothing to download and nothing to
admire but the way: interactions, a run, an adapter, and the same logits from PEFT, where that is installed.
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import cora
from cora.export.runs import export
from cora.runs.settings import RunConfig
from cora.runs.train import train

WORDS = "<pad> <s> </s> <unk> Liked Asked Answer . ? : , Yes No none so far film".split()
PROMPT = "Liked {history} . Asked {title} ? Answer :"


def main(steps: int = 20) -> float | None:
    """Trains, exports, compares; returns the largest difference of a logit, None without PEFT."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_base(folder / "base")
        _films().to_csv(folder / "films.csv", index=False)
        config = RunConfig(
            data=str(folder / "films.csv"),
            model=str(folder / "base"),
            dtype="float32",
            dim=8,
            steps=steps,
            eval_every=10,
            cora=dict(r=4, hidden_size=16, prompt=PROMPT, max_history=3),
            trainer=dict(use_cpu=True, disable_tqdm=True, report_to=[]),
        )
        train(config, folder / "run")
        (adapter,) = export(folder / "run", ["7"], ["3"], folder / "user7")
        files = sorted(f"{one.name} ({one.stat().st_size:,} bytes)" for one in adapter.iterdir())
        print(f"user 7 and film 3 are {', '.join(files)}")
        if importlib.util.find_spec("peft") is None:
            print("PEFT is not installed: nothing to compare with")
            return None
        ours, theirs = _logits_here(folder / "base", adapter), _logits_of_peft(folder / "base", adapter)
    difference = (ours - theirs).abs().max().item()
    print(f"largest difference of a logit between PEFT and here: {difference:.1e}")
    return difference


def _films() -> pd.DataFrame:
    """400 ratings of 20 users and 30 films, the odd ones liked more."""
    random = np.random.default_rng(0)
    items = random.integers(0, 30, 400)
    liked = random.random(400) < np.where(items % 2, 0.8, 0.2)
    frame = pd.DataFrame({"user_id": random.integers(0, 20, 400), "item_id": items, "rating": np.where(liked, 5, 2)})
    return frame.assign(timestamp=np.arange(400) * 60, title=[f"film {item}" for item in items])


def _write_base(folder: Path) -> None:
    vocabulary = {word: i for i, word in enumerate([*WORDS, *map(str, range(30))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    named = {f"{kind}_token": word for kind, word in zip(("pad", "bos", "eos", "unk"), WORDS, strict=False)}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@torch.no_grad()
def _logits_here(base: Path, adapter: Path) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(base).eval()
    bank = cora.load_bank(adapter, model)
    cora.patch(model, bank.linears).set_deltas(bank.deltas([adapter.name]))
    logits: torch.Tensor = model(input_ids=torch.arange(4, 20)[None]).logits
    return logits


@torch.no_grad()
def _logits_of_peft(base: Path, adapter: Path) -> torch.Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(adapter)).eval()
    logits: torch.Tensor = model(input_ids=torch.arange(4, 20)[None]).logits
    return logits


if __name__ == "__main__":
    main()
