"""Poses and motions of the SMPL-X skeleton, and their keys."""
