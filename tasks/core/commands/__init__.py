"""Quern's doit commands, a file per verb: doit's own on Quern's records, and `plan`, `why`."""
