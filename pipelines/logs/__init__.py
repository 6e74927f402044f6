"""Raw files: where they lie, what they hold, and their columns in the three types."""
