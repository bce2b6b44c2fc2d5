"""A trained network as plain data: nodes, numpy weights, fixed shapes, readable names; read, rewritten, run, saved."""

from leadline.graph.graph import Graph
from leadline.graph.ir import DOMAIN, Layer, Node, Value
from leadline.graph.read import external_files, inspect_inputs
from leadline.graph.session import Session

__all__ = ["DOMAIN", "Graph", "Layer", "Node", "Session", "Value", "external_files", "inspect_inputs"]
