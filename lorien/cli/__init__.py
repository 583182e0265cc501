"""The command line: the only place that prints, draws progress and reads the environment."""
