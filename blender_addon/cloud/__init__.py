"""Point clouds of Gaussians: record to datablock and back, and how they are shown."""
