"""The machinery that asks: plan, environments, workers, clock, runner."""
