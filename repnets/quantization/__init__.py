"""Symmetric int8 on a graph: simulate it, choose its ranges, and repair what it breaks. Needs torch alone.

All of it works on a `simulation.Simulation`: the network's graph, in which a `Rounding` stands wherever a tensor will
be int8. `ranges` sets their scales; `equalization` and `bias` change the weights so that less is lost; `sensitivity`
tells which layers lose most; `training` lets the network learn what is left.
"""
