"""`tandem demo`: the whole loop on real input, in a few minutes on a CPU."""
