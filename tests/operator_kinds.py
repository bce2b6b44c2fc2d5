"""Every kind of operator, each as one small network: a layer, the operator, a layer."""

import operator_functions
import operator_moves
from operator_networks import KINDS, network

__all__ = ["KINDS", "network", "operator_functions", "operator_moves"]
