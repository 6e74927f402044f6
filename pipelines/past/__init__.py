"""What the past says of a row: histories of users, aggregates of entities."""
