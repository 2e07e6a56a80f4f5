"""A sweep on a cluster: brought up, started there, followed, its results fetched, brought down."""
