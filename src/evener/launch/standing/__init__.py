"""Standing servers: one run after the other on machines that are there."""
