"""Measurements with real data: what updates cost and how long the work takes, next to plain tools and known limits."""
