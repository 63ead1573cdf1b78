"""Runs a sealed image in isolation, with our init as PID 1 and a gate before the experiment."""
