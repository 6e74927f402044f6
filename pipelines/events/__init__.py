"""Rows that must meet: shuffled into buckets, impressions joined with what followed them."""
