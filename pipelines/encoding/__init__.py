"""Prepared rows to codes and numbers, and the arrays that hold them."""
