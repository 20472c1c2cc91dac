"""The worked examples do what they say that they do."""

import pytest

from cora.examples import export_user, hypernetwork, users_together


def test_a_hypernetwork_on_the_op(capsys: pytest.CaptureFixture[str]) -> None:
    frozen, adapted = hypernetwork.main(steps=250)
    assert adapted < 0.1 * frozen
    assert "with A made of the context" in capsys.readouterr().out


def test_adapters_of_users_trained_together(capsys: pytest.CaptureFixture[str]) -> None:
    own, others = users_together.main(steps=50)
    assert own > 0.6 and others < 0.2
    assert "as PEFT adapters: user1, user2," in capsys.readouterr().out


def test_a_user_of_a_run_in_peft(capsys: pytest.CaptureFixture[str]) -> None:
    difference = export_user.main(steps=4)
    assert difference is not None and difference < 1e-5
    assert "user 7 and film 3 are adapter_config.json" in capsys.readouterr().out
