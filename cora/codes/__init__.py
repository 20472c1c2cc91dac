"""Items as short codes: quantised, made unique, kept in a folder, and found again by prefix."""

from cora.codes.assign import unique_codes
from cora.codes.item_codes import ItemCodes
from cora.codes.rqvae import RQVAE, Recipe, train_rqvae
from cora.codes.trie import Trie

__all__ = ["RQVAE", "ItemCodes", "Recipe", "Trie", "train_rqvae", "unique_codes"]
