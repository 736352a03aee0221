"""What asv times itself, because it is Python in one process: imports, reading of records, and the harness around no work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import levelfield
from impls.implementation import Network
from levelfield.history import RECORDS
from reports import frame
from suites.harness.clock import TimedPath


class Imports:
    """Each in a fresh interpreter."""

    def timeraw_levelfield(self) -> str:
        """The Python face, which must need nothing."""
        return "import levelfield"

    def timeraw_command(self) -> str:
        """The command before it knows which one."""
        return "import levelfield.cli"

    def timeraw_frame(self) -> str:
        """Pandas dominates."""
        return "from levelfield import checkout; checkout.enter(); import reports.frame"


class Reading:
    """Of one published run, which never changes: 142 records."""

    run: Path = RECORDS / "20261120T073425.975391Z-7a783d"

    def time_read(self) -> None:
        """Files to records; checking their hashes dominates."""
        frame.read(self.run)

    def time_load(self) -> None:
        """Files to the frame."""
        levelfield.load(self.run)


class Idle(Network):
    """An implementation that does nothing, so that what remains is the harness."""

    host_layout = "NCHW"

    def put(self, images: Any) -> Any:
        """See the contract."""
        return images

    def run(self, batch: Any) -> Any:
        """See the contract."""
        return batch

    def wait(self, output: Any) -> None:
        """See the contract."""

    def get(self, output: Any) -> Any:
        """See the contract."""
        return output

    def weights(self) -> dict[str, Any]:
        """See the contract."""
        return {}

    def compilations(self) -> int:
        """See the contract."""
        return 0

    def settings(self) -> dict[str, Any]:
        """See the contract."""
        return {}


class Clock:
    """One visit of 100 samples around an implementation that does nothing."""

    params = (["device", "transfer"], [1, 16])
    param_names = ("scope", "calls")

    def setup(self, scope: str, calls: int) -> None:
        """A ring of eight batches, as in a run."""
        self.path = TimedPath(Idle(), list(range(8)))

    def time_visit(self, scope: str, calls: int) -> None:
        """The loop around the clock; stopping Python's garbage collector once a visit is part of it."""
        self.path.visit(scope=scope, samples=100, calls=calls)
