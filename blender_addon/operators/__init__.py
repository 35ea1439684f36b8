"""Operators, one file per task."""
