"""An implementation whose framework is not installed."""

import a_framework_that_is_not_there  # noqa: F401
