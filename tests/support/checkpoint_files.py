"""Files of checkpoints: listed, damaged, and written anew with other content."""

from numba_rmsprop.files.safetensors_file import map_tensors, write_tensors


def forge(path, change):
    """Write a checkpoint anew, checksums included, after ``change(tensors, metadata)``."""
    tensors, metadata = map_tensors(path)
    tensors = {name: tensor.copy() for name, tensor in tensors.items()}
    metadata = {key: value for key, value in metadata.items() if not key.startswith("crc32")}
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)


def damage(path):
    """Flip a bit."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def checkpoint_names(folder):
    """Return the names of all files in a folder; those of a CheckpointManager by their numbers alone."""
    return sorted(path.name.removeprefix("checkpoint-").removesuffix(".safetensors") for path in folder.iterdir())
