"""What every room stands on: errors, progress bars, atomic output, stages, settings."""
