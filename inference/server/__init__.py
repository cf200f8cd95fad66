"""HTTP server of the active release."""
