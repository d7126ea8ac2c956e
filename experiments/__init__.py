"""Experiments, one module each, readable top to bottom: load, run, measure, plot.

A module has a dataclass `Config`, the schema of its YAML in configs/experiment/, and a function
`run(config: Config, tracker: ua.tracking.Tracker) -> dict` that returns the summary. `python -m ua.run` starts them.
"""
