"""RMSprop for PyTorch on CPUs, with sparse gradients: ``pip install ".[torch]"`` from a checkout."""

from .embedding import Embedding, EmbeddingBag
from .rmsprop import RMSprop

__all__ = ["Embedding", "EmbeddingBag", "RMSprop"]
