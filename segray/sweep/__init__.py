"""Trials, chosen by Optuna and run by Ray Tune, and the records they leave."""
