"""What a dataset file can say, how it is read, and what it must not say."""
