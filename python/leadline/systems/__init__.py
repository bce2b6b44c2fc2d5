"""Networks as their users have them, ready to quantise: one module for each system, one function `load` in each.

It takes the user's own clone or package and checkpoint (none: random weights), and returns a `System`.
"""

from leadline.systems.system import System

__all__ = ["System"]
