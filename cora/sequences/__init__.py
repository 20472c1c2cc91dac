"""What users did in order, which item comes next, and who guesses it: data, baselines, metrics."""

from cora.sequences.baselines import BASELINES
from cora.sequences.neural import READERS
from cora.sequences.ranking import Ranking, as_table
from cora.sequences.sequences import Sequences

__all__ = ["BASELINES", "READERS", "Ranking", "Sequences", "as_table"]
