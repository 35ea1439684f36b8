"""What leaves Blender: splat files and sequences, and the skinned stand-in of an avatar as glTF and USD."""
