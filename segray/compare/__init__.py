"""Which model is better on the test split, by how much, and how sure that is."""
