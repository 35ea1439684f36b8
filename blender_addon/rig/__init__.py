"""Armature, proxy mesh and the binding of the Gaussians to it."""
