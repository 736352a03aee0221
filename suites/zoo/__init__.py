"""The frameworks' own model zoos behind the contract of ``impls/``: what each of our implementations must not be slower than.

They are found only when asked for (``--zoo``), run from the same weights, certified and timed as ours are. Each sets its
process up as our implementation in that framework does, whose ``Runtime`` it inherits; the network is the zoo's.
"""
