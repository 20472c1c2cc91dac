"""The settings of a run, as files hold them."""

from pathlib import Path

import pytest

from cora.runs.folder import RunFolder
from cora.runs.settings import RunConfig, load_settings, value_of


def test_dates_need_no_quotes_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "dates.yaml").write_text(
        "data: d\nmodel: m\nsplit: dates\nvalid_from: 2002-04-01\ntest_from: 2002-09-01"
    )
    config = RunConfig.from_dict(load_settings(tmp_path / "dates.yaml"))
    assert (config.valid_from, config.test_from) == ("2002-04-01", "2002-09-01")
    run = RunFolder(tmp_path / "run")
    with run.opened(config):
        assert run.config() == config
    with pytest.raises(TypeError, match="valid_from: expected a date such as 2002-04-01, got 20020401"):
        RunConfig(data="d", model="m", valid_from=20020401)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("8", 8),
        ("true", True),
        ("null", None),
        ("", None),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("{min_lr_rate: 0.1}", {"min_lr_rate": 0.1}),
        ('"8"', "8"),
        ("2001-01-01", "2001-01-01"),
        ("mlp", "mlp"),
    ],
)
def test_values_are_read_as_yaml_writes_them(text: str, value: object) -> None:
    assert value_of("field", text) == value and type(value_of("field", text)) is type(value)


@pytest.mark.parametrize(
    "prompt",
    [
        "Liked: {history}. Is {title} liked? Answer:",
        "{title} after {history}: liked?",
        "Film #1 {title} # after {history}",
        "- {title} after {history}",
        "'tis {title}, and {history}",
        "@{user_id}: {title} & {history}*",
    ],
)
def test_text_with_signs_of_yaml_is_that_text(prompt: str) -> None:
    assert value_of("prompt", prompt) == prompt


def test_a_list_that_does_not_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"r: expected a value as YAML writes it, got '\['"):
        value_of("r", "[")
