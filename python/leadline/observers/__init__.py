"""Observers: statistics of a tensor, and the ranges that are found on them once the data has gone.

`MinMax`, `MovingAverage` and `Histogram` see each batch once and merge. `OBSERVERS` says what ranges there are;
`search_range` finds them on a histogram.
"""

from leadline.observers.search import METHODS, OBSERVERS, Observer, cost, search_range
from leadline.observers.statistics import Histogram, MinMax, MovingAverage

__all__ = ["METHODS", "OBSERVERS", "Histogram", "MinMax", "MovingAverage", "Observer", "cost", "search_range"]
