"""Collaborative filtering: vectors of users and items, trained here or brought along."""

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.fold_in import FoldIn
from cora.collaborative.mf import MFResult, train_mf
from cora.data.histories import pasts

__all__ = ["CollaborativeEmbeddings", "FoldIn", "MFResult", "pasts", "train_mf"]
