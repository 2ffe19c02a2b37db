"""The run: configuration, data order, engine, loop, checkpoints, tracking, evaluation, command line."""

__version__ = "0.1.0"
