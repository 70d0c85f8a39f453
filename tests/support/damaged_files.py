"""Checkpoints in a folder, and how one is damaged."""


def names(folder):
    return sorted(path.name.removeprefix("checkpoint-").removesuffix(".safetensors") for path in folder.iterdir())


def damage(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
