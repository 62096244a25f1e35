"""What a model is worth: bits per byte, speed, answers."""
