"""The real SmolLM2-135M: patched with P = 0 it is the base model bit for bit, and answers where it should."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings
from cora.llm.loading import smollm2_135m
from cora_kernels import use_backend

TITLES = ["Toy Story (1995)", "Heat (1995)", "Fargo (1996)"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(smollm2_135m(), padding_side="left")
    except RuntimeError as error:
        pytest.skip(f"SmolLM2-135M could not be fetched: {error}")


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def base(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> Iterator[PreTrainedModel]:
    yield AutoModelForCausalLM.from_pretrained(smollm2_135m(), dtype=request.param).eval()


@torch.no_grad()
def test_zero_p_gives_the_base_logits_bit_for_bit(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    config = CoRAConfig(generator="mlp", hidden_size=32, user_dropout=0.0).with_answer_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(config.answer_ids) == ["ĠYes", "ĠNo"]
    prompts = [config.template.render(TITLES[:n], TITLES[n]) for n in (2, 0)]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)

    def whole(model: PreTrainedModel) -> Tensor:
        return model(**batch, position_ids=positions, use_cache=False).logits

    expected = whole(base)
    embeddings = CollaborativeEmbeddings([1, 2], [3, 4], torch.randn(2, 16), torch.randn(2, 16))
    model = CoRAModel(base, config, embeddings).eval()
    assert len(model.patch.layers) == 120
    with use_backend("chain"):  # which adds x·Wᵀ by the GEMM of nn.Linear; others sum in another order
        scores = model(batch["input_ids"], batch["attention_mask"], [1, 2], [3, 4]).logits
        assert torch.equal(whole(model.base), expected)
    yes, no = config.answer_ids
    difference = expected[:, -1, yes].float() - expected[:, -1, no].float()
    torch.testing.assert_close(scores, difference, atol=1e-3 if base.dtype == torch.float32 else 0.2, rtol=0)
    model.unpatch()
    assert torch.equal(whole(base), expected)
