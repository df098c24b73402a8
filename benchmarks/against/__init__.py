"""Races against other libraries and against hand-written floors."""
