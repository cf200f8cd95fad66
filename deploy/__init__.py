"""From the best checkpoint to a verified, served release, and back again."""
