"""One model cut into stages over several devices."""
