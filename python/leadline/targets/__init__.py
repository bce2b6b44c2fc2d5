"""Targets: what a device's software takes, how an artefact for it is written and run, and what it is expected to give.

Each has a folder, and a class in the folder's ``target.py``; nothing of it is imported before it is asked for by name.
"""

from leadline.targets.target import TARGETS, Device, Target, target_for, target_of

__all__ = ["TARGETS", "Device", "Target", "target_for", "target_of"]
