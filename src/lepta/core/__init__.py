"""What every room stands on: errors, reading, settings, progress bars, atomic output."""
