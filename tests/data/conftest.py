from pathlib import Path

import pandas as pd
import pytest


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
