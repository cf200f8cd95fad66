"""The embedded stack: Redis, workers, beat, Flower and the inference server on one machine."""
