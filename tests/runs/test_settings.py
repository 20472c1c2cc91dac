"""The settings of a run, as files hold them."""

from pathlib import Path

import pytest

from cora.runs.folder import RunFolder
from cora.runs.settings import RunConfig, load_settings


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
