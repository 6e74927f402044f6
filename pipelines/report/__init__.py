"""What the features hold, counted, compared and shown."""
