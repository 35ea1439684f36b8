"""Readers and writers of splat files that need numpy alone."""
