"""Dataset and job in, verified checkpoint out. Runs as a child process."""
