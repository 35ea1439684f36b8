"""What the photo shows: safe decoding, the person, mask, labels and landmarks."""
