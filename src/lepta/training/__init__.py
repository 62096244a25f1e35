"""From text to trained weights: blocks, continued pre-training, tuning."""
