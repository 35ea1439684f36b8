"""The first experiments, kept to compare speeds with."""
