"""Towers that average among themselves: who meets, sums, and rings."""
