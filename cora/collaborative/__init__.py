"""Collaborative filtering: vectors of users and items, trained here or brought along."""

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.fold_in import FoldIn, pasts
from cora.collaborative.mf import MFResult, train_mf

__all__ = ["CollaborativeEmbeddings", "FoldIn", "MFResult", "pasts", "train_mf"]
