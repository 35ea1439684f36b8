"""Gaussians: how they are bound, sampled, coloured, optimised and measured."""
