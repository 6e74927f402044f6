"""Which expert serves which rows, and what it is worth: `gates.json` and `gates.html` of a run."""
