"""CoRAConfig: defaults as published, JSON round trip, one clear error for every field."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cora import CoRAConfig


def test_defaults_are_those_published() -> None:
    config = CoRAConfig()
    assert (config.r, config.scaling, config.dropout) == (16, 2.0, 0.05)
    assert config.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (config.num_queries, config.num_blocks, config.num_heads, config.ffn_size) == (4, 8, 8, 3072)
    assert config.template.render(["A", "B"], "C").endswith('titled "C"? Answer with "Yes" or "No". \n#Answer:')


def test_alpha_over_r_is_the_scaling() -> None:
    assert CoRAConfig(r=64).scaling == 2.0
    assert CoRAConfig(r=8, alpha=4).scaling == 0.5


def test_json_round_trip(tmp_path: Path) -> None:
    config = CoRAConfig(
        base_model="x/y", r=3, layers=[0, 5], target_modules=["c_attn"], answer=("yes", None), answer_ids=[7], width=64
    )
    path = tmp_path / "config.json"
    path.write_text(config.to_json_string())
    assert CoRAConfig.load(path) == config
    assert isinstance(CoRAConfig.load(path).layers, tuple)


WRONG: list[tuple[str, Any]] = [
    ("base_model", 3),
    ("r", 0),
    ("r", 2.0),
    ("r", True),
    ("alpha", 0),
    ("alpha", "16"),
    ("dropout", 1.0),
    ("dropout", -0.1),
    ("target_modules", "q_proj"),
    ("target_modules", ()),
    ("target_modules", (1,)),
    ("layers", ()),
    ("layers", ("0",)),
    ("layers", (-1,)),
    ("layers", 3),
    ("generator", "lstm"),
    ("generator_dropout", 2),
    ("tokens", "three"),
    ("num_queries", 0),
    ("num_blocks", None),
    ("num_heads", -1),
    ("ffn_size", 1.5),
    ("width", 0),
    ("hidden_size", 0),
    ("answer", "Yes"),
    ("answer", (None, "No")),
    ("answer", ("Yes",)),
    ("answer", ("Yes", "")),
    ("answer_ids", (1,)),
    ("answer_ids", (1, 1)),
    ("answer_ids", (1, -2)),
    ("prompt", 7),
    ("no_history", None),
    ("max_history", -1),
    ("max_length", 0),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field}-{value!r}" for field, value in WRONG])
def test_wrong_value_names_the_field(field: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=field):
        CoRAConfig(**{field: value})


def test_prompt_without_its_fields() -> None:
    with pytest.raises(ValueError, match="title"):
        CoRAConfig(prompt="no fields at all")


def test_unknown_field() -> None:
    with pytest.raises(ValueError, match="rank.*known are.*alpha"):
        CoRAConfig.from_dict({"rank": 16})


@pytest.mark.parametrize(("text", "expected"), [("{", "not JSON"), ("[1]", "a JSON object")])
def test_file_that_holds_no_configuration(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected):
        CoRAConfig.load(path)


def test_answer_ids_are_those_that_follow_the_prompt() -> None:
    words = {"[UNK]": 0, "Answer": 1, ":": 2, "Yes": 3, "ĠYes": 4, "ĠNo": 5, "ĠMay": 6, "be": 7}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    prompt = "{history} {title}\nAnswer:"
    config = CoRAConfig(prompt=prompt)
    assert config.with_answer_ids(fast).answer_ids == (4, 5)
    assert config.answer_ids is None
    assert CoRAConfig(prompt=prompt, answer=(" Yes", None)).with_answer_ids(fast).answer_ids == (4,)
    with pytest.raises(ValueError, match="' Yes No' after the prompt must be one token, got .*ĠYes.*ĠNo"):
        CoRAConfig(prompt=prompt, answer=(" Yes No", " No")).with_answer_ids(fast)


def test_json_is_plain() -> None:
    assert json.loads(CoRAConfig(layers=(1, 2)).to_json_string())["layers"] == [1, 2]
