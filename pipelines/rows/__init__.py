"""What becomes of a row: its split, its labels, and the reasons why it is left out."""
