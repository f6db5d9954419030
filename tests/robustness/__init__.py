"""What the product does with hostile and damaged input: a table of readers and damages, and what came of each."""
