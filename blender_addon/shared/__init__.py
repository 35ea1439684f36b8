"""The contract between Blender and the backend: standard library and numpy only, imported by both sides."""
