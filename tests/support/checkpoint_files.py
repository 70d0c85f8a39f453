"""Checkpoints to start from, and forged ones."""

from numba_rmsprop.files.safetensors_file import map_tensors, write_tensors


def forge(path, change):
    """Write a checkpoint anew, checksums included, after ``change(tensors, metadata)``."""
    tensors, metadata = map_tensors(path)
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    metadata = {key: value for key, value in metadata.items() if not key.startswith("crc32")}
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)
