"""The records that every room shares, the states they move through, and the store that keeps them."""
