"""Stands for the package of this name."""

from types import SimpleNamespace


class Config:
    @staticmethod
    def fromfile(path):
        assert path.is_file()
        return SimpleNamespace(model=SimpleNamespace(decode_head=SimpleNamespace(iters=4)))
