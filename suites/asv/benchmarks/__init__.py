"""The benchmarks that ``asv check`` and ``asv run`` find; asv imports this folder as a package of its own, ``benchmarks``."""

from levelfield import checkout

checkout.enter()
