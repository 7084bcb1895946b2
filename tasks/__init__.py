"""Quern's chapters (one per stage of the build) and the floors beneath them."""
