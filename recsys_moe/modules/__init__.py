"""Building blocks of every architecture: one idea a file."""
