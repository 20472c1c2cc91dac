"""Collaborative filtering: vectors of users and items, trained here or brought along."""

from cora.collaborative.embeddings import CollaborativeEmbeddings
from cora.collaborative.mf import MFResult, train_mf

__all__ = ["CollaborativeEmbeddings", "MFResult", "train_mf"]
