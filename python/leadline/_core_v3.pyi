from leadline._core import *  # noqa: F403  # one interface, compiled for two instruction sets
