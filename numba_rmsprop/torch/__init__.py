"""RMSprop for PyTorch on CPUs, with sparse gradients: ``pip install ".[torch]"`` from a checkout."""

from ..runtime.launching import share_threads_with_torch
from .embedding import Embedding, EmbeddingBag
from .embedding_collection import EmbeddingBagCollection
from .rmsprop import RMSprop

__all__ = ["Embedding", "EmbeddingBag", "EmbeddingBagCollection", "RMSprop"]

share_threads_with_torch()
