"""One adapter for each tool that a run may be reported to."""
