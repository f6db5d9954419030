"""Benches: what training many models at once is worth, and how good the recipe's models are, on the machine at hand."""
