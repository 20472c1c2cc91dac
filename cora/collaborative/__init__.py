"""Collaborative filtering: vectors of users and items, trained here or brought along."""

from cora.collaborative.bayes import train_bayes
from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.fitting import FitResult
from cora.collaborative.fold_in import FoldIn, items_without_own_rating
from cora.collaborative.mf import train_mf
from cora.data.histories import pasts

MFResult = FitResult  # the name that it had while matrix factorisation was the only model

# name -> train(train, valid, dim, seed=...) -> its embeddings and its FitResult.
COLLABORATIVE = {"mf": train_mf, "bayes": train_bayes}

__all__ = [
    "COLLABORATIVE", "CollaborativeEmbeddings", "FitResult", "FoldIn", "MFResult", "items_without_own_rating", "pasts",
    "train_bayes", "train_mf",
]  # fmt: skip
