"""The time and memory of a whole run, predicted before it trains."""
