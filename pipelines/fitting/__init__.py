"""What is learnt from the train split: vocabularies, scales, and how they grow."""
