"""Defects that published libraries ship, put into a copy of `blo` one at a time: the tests must notice each."""
