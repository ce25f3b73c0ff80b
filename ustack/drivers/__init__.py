"""Drivers: what turns the crank of the sans-I/O engine."""
