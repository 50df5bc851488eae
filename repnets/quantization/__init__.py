"""Symmetric int8 on a graph: simulate it, set its ranges, and recover lost accuracy. Needs only torch.

All of it works on a `simulation.Simulation`: the network's graph, in which a `Rounding` stands wherever a tensor will
be int8. `ranges` sets their scales; `equalization` and `bias` change the weights to reduce the error; `sensitivity`
measures the error of each layer; `training` trains the network in int8.
"""
