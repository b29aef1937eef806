"""Checks, outcomes, the runner and the reports."""
