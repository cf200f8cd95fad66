"""The only code that runs a model for anything but training: score, generate, serve."""
