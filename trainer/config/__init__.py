"""Models of a training job's settings."""
