"""Collaborative filtering: vectors of users and items, trained here or brought along."""

from cora.collaborative.bayes import train_bayes
from cora.collaborative.din import train_din
from cora.collaborative.embeddings import CollaborativeEmbeddings, ItemGuesses
from cora.collaborative.fitting import FitResult
from cora.collaborative.fold_in import FoldIn
from cora.collaborative.guesses import guessed_items
from cora.collaborative.lightgcn import train_lightgcn
from cora.collaborative.mf import train_mf
from cora.collaborative.mf_published import train_mf_published
from cora.collaborative.own_rating import items_without_own_rating
from cora.collaborative.sasrec import train_sasrec
from cora.collaborative.similar import Directions, most_similar
from cora.collaborative.svd_logistic import train_svd_logistic
from cora.collaborative.user_encoder import USER_ENCODERS, UserEncoder, user_encoder
from cora.data.histories import pasts

MFResult = FitResult  # the name that it had while matrix factorisation was the only model

# name -> train(train, valid, dim, seed=...) -> its embeddings and its FitResult.
COLLABORATIVE = {
    "mf": train_mf,
    "bayes": train_bayes,
    "mf-published": train_mf_published,
    "lightgcn": train_lightgcn,
    "sasrec": train_sasrec,
    "din": train_din,
    "svd-logistic": train_svd_logistic,
}

__all__ = [
    "COLLABORATIVE",
    "USER_ENCODERS",
    "CollaborativeEmbeddings",
    "Directions",
    "FitResult",
    "FoldIn",
    "ItemGuesses",
    "MFResult",
    "UserEncoder",
    "guessed_items",
    "items_without_own_rating",
    "most_similar",
    "pasts",
    "train_bayes",
    "train_din",
    "train_lightgcn",
    "train_mf",
    "train_mf_published",
    "train_sasrec",
    "train_svd_logistic",
    "user_encoder",
]
